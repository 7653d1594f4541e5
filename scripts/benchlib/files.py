"""Benchmarks of reading files: JPEGs into image tiles, a checkpoint into parameters."""

import os
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data.images import decode_image, tile_image
from benchlib import inputs, programs
from benchlib.sizes import Options, Size


def jpeg_tiles(_size: Size, options: Options) -> dict[str, Any]:
    """Five JPEGs of 1024 px to tiles of 448 px, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    encoded, times = inputs.jpegs(), []
    for _ in range(5 * options.reps + 1):
        start = time.perf_counter()
        decoded = [decode_image(data, "image") for data in encoded]
        decoding_end = time.perf_counter()
        for image in decoded:
            tile_image(image, 448)
        end = time.perf_counter()
        times.append((end - start, end - decoding_end))
    seconds, tiling = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return dict(
        sample_s=seconds,
        tiling_s=tiling,
        images=len(encoded),
        images_per_s=round(len(encoded) / seconds, 1),
    )


def import_checkpoint(size: Size, _: Options) -> dict[str, Any]:
    """Reads a checkpoint in the -hf layout, bfloat16 on disk, into float32 parameters."""
    parameters = programs.random_parameters(size.config)
    half = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), parameters)
    kept = sum(x.nbytes for x in jax.tree.leaves(parameters))
    del parameters
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_parameters(half, size.config, f"{folder}/checkpoint")
        del half
        start = time.perf_counter()
        jax.block_until_ready(huggingface.load_parameters(f"{folder}/checkpoint", size.config))
        return dict(import_s=time.perf_counter() - start, kept_bytes=kept)
