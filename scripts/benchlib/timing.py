"""Seconds of a call, bytes of a compiled program, and rates."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from aesthetic_jax.training.flops import peak_flops
from benchlib.sizes import Options, Size


def median_seconds(run: Callable[[], Any], options: Options) -> float:
    """Median time of a call, after one call that compiles; with a profile, traces one more call."""
    times = []
    for _ in range(options.reps + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    if options.profile:
        with jax.profiler.trace(options.profile, create_perfetto_trace=True):
            jax.block_until_ready(run())
    return statistics.median(times[1:])


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a program: arguments, temporaries, and the peak, which is all that it holds."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return dict(
        argument_bytes=sizes.argument_size_in_bytes,
        temp_bytes=sizes.temp_size_in_bytes,
        peak_memory_bytes=held + sizes.temp_size_in_bytes,
    )


def rates(size: Size, seconds: float, flops: float, tokens: int) -> dict[str, float]:
    """Tokens/s, FLOP/s and MFU of work that took so many seconds."""
    peak = peak_flops(size.config.dtype)
    return dict(
        tokens_per_s=round(tokens / seconds, 1),
        model_flops=flops,
        model_flops_per_s=flops / seconds,
        peak_flops_per_s=peak,
        mfu=round(flops / seconds / peak, 4),
    )
