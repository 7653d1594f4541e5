"""The bytes that decoding must read, and this machine's read bandwidth.

The bytes of one decoded token, with G completions that share a prompt of P tokens, at token t of T:

    weights   L layers, the final norm and the head, once for all completions; not the embedding,
              of which a token reads one row a completion
    caches    2 L K E numbers a token: the prompt's P tokens once for all completions (they read
              the same cache), each completion's own t tokens

At size bench, in float32 with L 8, D 512, K 2, E 64, F 1536, V 8192, G 8, P 400, T 96:

    layer     2 D^2 + 2 D K E + 3 D F kernels + D + 2 K E biases + 2 D norms     =  3,016,448
    weights   4 bytes x (8 x 3,016,448 + D final norm + D V head)                =  113.3 MB
    prompt    4 bytes x 2 L K E x P = 8,192 bytes x 400                          =    3.3 MB
    own       8,192 bytes x 8 completions x 48.5, the mean of t = 1 .. 96        =    3.2 MB

together 119.8 MB a token, 11.5 GB a rollout. These are lower bounds: a program also reads the part
of the caches that is still empty, and more bytes where it widens bfloat16 to float32, as for the
head, whose logits are float32.
"""

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from aesthetic_jax.training.flops import best_seconds
from benchlib.programs import Parameters
from benchlib.sizes import Size

_CPU_CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_CHUNK = 2**23  # float32 numbers that a thread reduces in one call


def decoding_bytes(size: Size, language: Parameters, group: int) -> int:
    """Lower bound on the bytes that decoding one prompt's group reads, for all T tokens.

    Args:
        size: whose completions all have their full length.
        language: parameters of the language model, in the dtype that decoding reads them in.
        group: completions G.
    """
    text, width = size.config.text, jnp.dtype(size.config.dtype).itemsize
    weights = sum(x.nbytes for x in jax.tree.leaves(language))
    if not text.tied_head:
        weights -= language["embedding"].nbytes
    weights += group * text.width * language["embedding"].dtype.itemsize
    per_cached_token = 2 * text.layers * text.kv_heads * text.head_dim * width
    own = group * size.completion * (size.completion + 1) // 2  # sum of 1 .. T, per completion
    cached_tokens = size.completion * size.prompt + own
    return size.completion * weights + cached_tokens * per_cached_token


def last_level_cache() -> int:
    """Bytes of the first CPU core's largest cache; 64 MiB if unknown."""
    sizes = [path.read_text().strip() for path in _CPU_CACHES.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=2**26)


def read_bandwidth() -> float:
    """Peak read bandwidth of the default device, in bytes/s.

    Measured by a reduction, which like a product with weights writes almost nothing. On a CPU all
    cores reduce an array of four times the last-level cache, so that little of it stays cached
    between passes; on an accelerator the array has 2 GiB.
    """
    if jax.default_backend() != "cpu":
        x = jnp.ones(2**29, jnp.float32)
        largest = jax.jit(jnp.max)
        return x.nbytes / best_seconds(lambda: largest(x))
    chunks = max(8, 4 * last_level_cache() // (4 * _CHUNK))
    array = np.ones((chunks, _CHUNK), np.float32)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return array.nbytes / best_seconds(lambda: jnp.array([*threads.map(np.max, array)]))
