"""Model FLOPs of a step and peak FLOP/s of the devices: the two halves of MFU.

Counted as MaxText does. A multiply-add is two FLOPs; padding and rematerialisation are not counted;
causal attention counts half of full attention; embedding look-ups are free. A prompt counts once,
however many completions share it.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.training.chips import TPU_CHIPS


class ForwardFlops(NamedTuple):
    """FLOPs of one forward pass over a batch; a backward pass takes twice as many."""

    vision: float  # vision tower
    language: float  # projector, language model, and the head on completion tokens


def forward_flops(
    config: InternVLConfig,
    tiles: int | np.integer,
    prompt: Int[np.ndarray, " B"],
    completion: Int[np.ndarray, "B G"],
) -> ForwardFlops:
    """FLOPs of `prefill`, `extend` and the head.

    Args:
        config: the model's config.
        tiles: number of image tiles in the batch.
        prompt: tokens of each prompt, image tokens included.
        completion: tokens of each completion.
    """
    vision, text = config.vision, config.text
    prompt, completion = prompt.astype(np.float64), completion.astype(np.float64)
    patches = vision.grid**2
    positions = patches + 1  # and the class token
    vision_layer = (
        positions * (4 * vision.width**2 + 2 * vision.width * vision.mlp_width)
        + 2 * positions**2 * vision.width
    )
    patch_embedding = patches * 3 * vision.patch_size**2 * vision.width
    tower = tiles * (patch_embedding + vision.layers * vision_layer)

    shuffled = vision.width * config.shuffle**2
    projector = tiles * config.tokens_per_tile * (shuffled * text.width + text.width**2)
    heads = text.heads * text.head_dim
    matrices = (
        2 * text.width * heads
        + 2 * text.width * text.kv_heads * text.head_dim
        + 3 * text.width * text.mlp_width
    )
    pairs = (prompt**2 / 2).sum() + (prompt[:, None] * completion + completion**2 / 2).sum()
    layer = (prompt.sum() + completion.sum()) * matrices + 2 * pairs * heads
    head = completion.sum() * text.width * text.vocab_size
    return ForwardFlops(2 * tower, 2 * (projector + text.layers * layer + head))


def batch_flops(
    config: InternVLConfig,
    prompt_ids: Int[Array | np.ndarray, "B P"],
    prompt_mask: Bool[Array | np.ndarray, "B P"],
    completion_mask: Bool[Array | np.ndarray, "B G T"],
) -> ForwardFlops:
    """`forward_flops` of a padded batch, whose image tokens tell the number of tiles."""
    tiles = int((prompt_ids == config.image_token).sum()) // config.tokens_per_tile
    prompt = np.asarray(prompt_mask).sum(1)
    return forward_flops(config, tiles, prompt, np.asarray(completion_mask).sum(2))


def peak_flops(dtype: str) -> float:
    """Peak FLOP/s of all devices of this run.

    A known TPU's is from its data sheet (bfloat16). Any other device's is measured with one large
    matrix product.

    Args:
        dtype: of the activations, for the measurement.
    """
    chip = TPU_CHIPS.get(jax.devices()[0].device_kind)
    peak = chip.flops if chip else _matrix_product_flops(dtype)
    # Virtual CPU devices share their host's cores.
    return peak * (jax.process_count() if jax.default_backend() == "cpu" else jax.device_count())


def _matrix_product_flops(dtype: str) -> float:
    size = 1024 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / best_seconds(lambda: product(x, x))


def best_seconds(compute: Callable[[], Array]) -> float:
    """Seconds of the fastest of five calls, after one that compiles.

    The fastest call is least disturbed by other work on the device.
    """
    compute().block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        compute().block_until_ready()
        times.append(time.perf_counter() - began)
    return min(times)
