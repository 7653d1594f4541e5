"""Benchmark of compiling: each step's program lowered and compiled, nothing run."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from aesthetic_jax.models.internvl import abstract_model
from aesthetic_jax.training.state import split
from benchlib import inputs, programs
from benchlib.sizes import Options, Size
from benchlib.timing import program_memory


def compile_time(size: Size, options: Options) -> dict[str, Any]:
    """Seconds of lowering and compiling sft, update and rollout; the vision tower is frozen."""
    _, shapes = abstract_model(size.config)
    trained, frozen = split(shapes, ("vision",), False)
    experience = programs.make_experience(size, options.group)
    text, completions = ([lengths[0]] for lengths in inputs.sft_lengths(size))
    batch = programs.make_batch(size, text, completions)
    one, key = jax.ShapeDtypeStruct((), jnp.float32), jax.eval_shape(lambda: jax.random.key(0))
    lowered_from = {
        "sft": (programs.sft_update(size).gradient, (trained, frozen, batch, one, None)),
        "update": (
            programs.grpo_update(size).gradient,
            (trained, frozen, experience, one, shapes),
        ),
        "rollout": (programs.rollout(size, options.group, end_token=2), (shapes, batch, key)),
    }
    result = {}
    for name, (program, arguments) in lowered_from.items():
        start = time.perf_counter()
        compiled = program.lower(*arguments).compile()
        result[f"{name}_compile_s"] = time.perf_counter() - start
        result[f"{name}_temp_bytes"] = program_memory(compiled)["temp_bytes"]
    return result
