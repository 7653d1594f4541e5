"""Compiles a step's programs and reports memory, collectives, roofline and whether they fit."""

import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aesthetic_jax.aot.collectives import (
    Collective,
    collectives,
    gathered_stacks,
    stack_gathers,
    summarize_collectives,
)
from aesthetic_jax.aot.programs import Program, abstract_setup, step_programs
from aesthetic_jax.aot.roofline import roofline
from aesthetic_jax.training.chips import TPU_CHIPS
from aesthetic_jax.training.mesh import row_shards
from aesthetic_jax.training.setup import TrainSetup

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def measure_step(
    setup: TrainSetup, name: str, programs: list[Program], slices: int = 1
) -> dict[str, Any]:
    """Compiles a step and reports what it needs.

    Bytes are per chip. `peak_bytes_per_chip` is the maximum over the step's programs. A program's
    peak is the sum of arguments, outputs that don't reuse an argument's memory, temporaries, and
    other arrays that stay in memory (for example the optimiser's state during a gradient).
    `argument_bytes` and `temp_bytes` are of that program. `collectives` and `collective_bytes` are
    of the whole step, with each collective in a loop counted once per iteration. `warnings` names
    all-gathers of a parameter of all layers at once. `roofline` explains the other fields.

    A known chip adds `memory_share`, the peak's share of its memory, and `fits`. If the compiler
    refuses a step for its memory, `fits` is false, and only `compile_s` and, if the compiler gives
    them, `peak_bytes_per_chip` and `compiler_limit_bytes` are set.

    Args:
        setup: the abstract setup.
        name: name of the step: sft, rollout or update.
        programs: the step's programs, from `step_programs`.
        slices: number of slices that the mesh spans.
    """
    report = _compile_step(setup, name, programs, setup.mesh.size // slices)
    chip = TPU_CHIPS.get(setup.mesh.devices.flat[0].device_kind)
    if chip and "peak_bytes_per_chip" in report:
        report["memory_share"] = round(report["peak_bytes_per_chip"] / chip.memory, 4)
        report.setdefault("fits", report["peak_bytes_per_chip"] <= chip.memory)
    return report


def largest_rows(config: ConfigDict, mesh: Mesh, name: str, slices: int = 1) -> int:
    """The most rows of a microbatch per device, of 1, 2, 4, ..., that fit a known chip; 0: none."""
    rows = 1
    while True:
        trial = config.copy_and_resolve_references().unlock()
        trial.batch_size, trial.micro_batches = 2 * rows * row_shards(mesh), 2
        setup = abstract_setup(trial, mesh)
        if not measure_step(setup, name, step_programs(setup)[name], slices)["fits"]:
            return rows // 2
        rows *= 2


def _compile_step(
    setup: TrainSetup, name: str, programs: list[Program], per_slice: int
) -> dict[str, Any]:
    began, memory, found = time.perf_counter(), [], []
    for program in programs:
        try:
            with jax.set_mesh(setup.mesh):
                compiled = program.function.lower(*program.arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            seconds = time.perf_counter() - began
            return {"fits": False, "compile_s": seconds} | _refused_bytes(str(error))
        memory.append(_memory(compiled, program))
        text = compiled.as_text()
        found += [
            collective._replace(count=collective.count * program.runs)
            for collective in collectives(
                text, setup.mesh.size, trips=program.trips, per_slice=per_slice
            )
        ]
    counts, sizes = summarize_collectives(found)
    return (
        max(memory, key=lambda program: program["peak_bytes_per_chip"])
        | {
            "collectives": counts,
            "collective_bytes": sizes,
            "compile_s": round(time.perf_counter() - began, 1),
            "warnings": _warnings(setup, name, found),
        }
        | roofline(setup, name, found)
    )


def _memory(compiled: jax.stages.Compiled, program: Program) -> dict[str, int]:
    """Bytes per chip of one compiled program."""
    memory = compiled.memory_analysis()
    assert memory is not None  # CPU and TPU compilers report it
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    resident = sum(map(_device_bytes, jax.tree.leaves(program.resident)))
    return {
        "peak_bytes_per_chip": memory.argument_size_in_bytes
        + outputs
        + memory.temp_size_in_bytes
        + resident,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
    }


def _device_bytes(x: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(x.sharding.shard_shape(x.shape))) * jnp.dtype(x.dtype).itemsize


def _warnings(setup: TrainSetup, name: str, found: list[Collective]) -> list[str]:
    if name == "rollout" and setup.config.mesh.replicate_for_rollout:
        return []  # that field asks for gathering all layers at once
    return [
        f"gathers a parameter of all layers at once, {list(shape)}: "
        "the layer scan should gather one layer at a time"
        for shape in stack_gathers(found, gathered_stacks(setup.parameters))
    ]


def _refused_bytes(message: str) -> dict[str, int]:
    """Bytes that XLA's error message says it would need and has."""
    sizes = re.search(r"[Uu]sed ([\d.]+)([KMG]) of ([\d.]+)([KMG])", message)
    if sizes is None:
        return {}
    used, unit, limit, limit_unit = sizes.groups()
    return {
        "peak_bytes_per_chip": int(float(used) * _UNITS[unit]),
        "compiler_limit_bytes": int(float(limit) * _UNITS[limit_unit]),
    }
