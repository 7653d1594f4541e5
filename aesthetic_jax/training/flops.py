"""How much arithmetic a step needs, and how much a device could do: tokens/s, model FLOP/s and MFU are made of these.

Counted as MaxText does: a multiply-add is two; what rematerialisation computes again and what padding costs is not counted;
causal attention is half of the full one; looking up embeddings is free. A prompt counts once, however many completions share
it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from aesthetic_jax.models.config import InternVLConfig

# Of one chip, bfloat16, from Google's data sheets.
_TPU_PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
}

# Of one chip, from the same sheets: bytes of memory, and bytes/s over all its links to other chips.
_TPU_MEMORY = {"TPU v4": 32, "TPU v5 lite": 16, "TPU v5": 95, "TPU v5p": 95, "TPU v6 lite": 32, "TPU7x": 192}
_TPU_LINKS = {
    "TPU v4": 300e9,
    "TPU v5 lite": 200e9,
    "TPU v5": 600e9,
    "TPU v5p": 600e9,
    "TPU v6 lite": 448e9,
    "TPU7x": 1200e9,
}


class Chip(NamedTuple):
    """What one chip can do."""

    flops: float  # FLOP/s in bfloat16
    memory: int  # bytes
    links: float  # bytes/s to other chips of its slice


def tpu_chip(kind: str) -> Chip | None:
    """A TPU chip by its device kind; None: unknown."""
    return Chip(_TPU_PEAK[kind], _TPU_MEMORY[kind] * 2**30, _TPU_LINKS[kind]) if kind in _TPU_PEAK else None


class ForwardFlops(NamedTuple):
    """FLOPs of one forward pass over a batch; a backward pass takes twice as many of what is trained."""

    vision: float  # vision tower
    language: float  # projector, language model, and the head on completion tokens


def forward_flops(
    config: InternVLConfig, tiles: int, prompt: Int[np.ndarray, " B"], completion: Int[np.ndarray, "B G"]
) -> ForwardFlops:
    """FLOPs of `prefill` and `extend` with the head.

    Args:
        tiles: image tiles of the batch.
        prompt: tokens of each prompt, image tokens included.
        completion: tokens of each completion.
    """
    vision, text = config.vision, config.text
    prompt, completion = np.asarray(prompt, np.float64), np.asarray(completion, np.float64)
    patches = vision.grid**2
    seen = patches + 1
    vision_layer = seen * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width) + 2 * seen**2 * vision.width
    tower = tiles * (patches * 3 * vision.patch_size**2 * vision.width + vision.layers * vision_layer)

    shuffled = vision.width * config.shuffle**2
    projector = tiles * config.tokens_per_tile * (shuffled * text.width + text.width**2)
    heads = text.heads * text.head_dim
    matrices = 2 * text.width * heads + 2 * text.width * text.kv_heads * text.head_dim + 3 * text.width * text.mlp_width
    pairs = (prompt**2 / 2).sum() + (prompt[:, None] * completion + completion**2 / 2).sum()
    layer = (prompt.sum() + completion.sum()) * matrices + 2 * pairs * heads
    head = completion.sum() * text.width * text.vocab_size
    return ForwardFlops(2 * tower, 2 * (projector + text.layers * layer + head))


def batch_flops(config: InternVLConfig, prompt_ids: np.ndarray, prompt_mask: np.ndarray, completion_mask: np.ndarray):
    """`forward_flops` of a padded batch: prompt_ids and prompt_mask [B, P], completion_mask [B, G, T]."""
    tiles = int((prompt_ids == config.image_token).sum()) // config.tokens_per_tile
    return forward_flops(config, tiles, prompt_mask.sum(1), completion_mask.sum(2))


def peak_flops(dtype: str) -> float:
    """FLOP/s that all devices of this run could do: the data sheet's on TPUs, else that of a large matrix product, measured.

    Args:
        dtype: what activations are computed in.
    """
    kind = jax.devices()[0].device_kind
    peak = _TPU_PEAK[kind] if kind in _TPU_PEAK else _matrix_product_flops(dtype)
    # Virtual CPU devices share their host's cores.
    return peak * (jax.process_count() if jax.default_backend() == "cpu" else jax.device_count())


def _matrix_product_flops(dtype: str) -> float:
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / best_seconds(lambda: product(x, x))


def best_seconds(run: Callable[[], Array]) -> float:
    """Time of a computation at its best, after one run that compiles: what a device can do, not what neighbours leave of it."""
    run().block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)
