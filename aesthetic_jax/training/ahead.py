"""A config's steps, compiled ahead of time for devices that aren't here, and what the compiler says of them."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.training import grpo
from aesthetic_jax.training.collectives import Collective, collectives, stack_gathers, summarize_collectives
from aesthetic_jax.training.flops import forward_flops, tpu_chip
from aesthetic_jax.training.mesh import check_rows, row_shards, rows_sharding
from aesthetic_jax.training.model import config_architecture
from aesthetic_jax.training.run import Run, prepare
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import Parameters, Update

_DATA_CENTRE_LINKS = 6.25e9  # bytes/s a chip between slices; a host of four chips has 200 Gbit/s
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Program(NamedTuple):
    """One compiled function of a step."""

    function: Callable
    arguments: tuple  # abstract, with shardings
    runs: int  # in a step
    resident: Any  # abstract arrays that lie on the devices meanwhile, beside the arguments
    trips: int = 1  # of loops that stop by themselves


def prepare_ahead(config: ConfigDict, mesh: Mesh) -> Run:
    """The run that a config means on devices that aren't here.

    Raises:
        UserError: the batch or the model doesn't fit the mesh.
    """
    check_rows(mesh, "batch_size", config.batch_size, config.micro_batches)
    return prepare(config, config_architecture(config), mesh)


def steps(run: Run) -> dict[str, list[Program]]:
    """The programs of each step at a config's largest shapes: `sft`, or `rollout` and `update`."""
    if run.config.method == "sft":
        batch = _batch(run, run.config.batch_size, run.config.data.completion_buckets[-1])
        update = make_sft_update(run.graph, run.optimizer, run.shardings)
        return {"sft": _update_programs(run, update, batch, None)}
    config, group, length = run.config, run.config.grpo.num_generations, run.config.max_completion_length
    sample, vision_features, _ = grpo.make_inference(config, run.graph, run.mesh, end_token=1, pad_token=0)
    reference = run.parameters if config.grpo.beta else None
    resident = (run.state.optimizer, reference)
    batch, first = _batch(run, config.batch_size, 0), []
    if "vision" in config.model.freeze:
        first = [Program(vision_features, (run.parameters, batch.tiles), 1, resident)]
        batch = batch._replace(tiles=_features(run, config.batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    experience = grpo.Experience(
        tiles=batch.tiles,
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=_rows(run, config.batch_size, (group, length), jnp.int32),
        completion_mask=_rows(run, config.batch_size, (group, length), bool),
        advantages=_rows(run, config.batch_size, (group,), jnp.float32),
        old_logprobs=None,
        ref_logprobs=None,
    )
    if config.grpo.num_iterations > 1:
        logprobs = _rows(run, config.batch_size, (group, length), jnp.float32)
        experience = experience._replace(old_logprobs=logprobs, ref_logprobs=logprobs if config.grpo.beta else None)
    update = grpo.make_update_of(run)
    return {
        "rollout": [*first, Program(sample, (run.parameters, batch, key), 1, resident, trips=length)],
        "update": _update_programs(run, update, experience, reference),
    }


def _update_programs(run: Run, update: Update, batch: Any, reference: Parameters | None) -> list[Program]:
    """One optimiser update on the parts of a batch."""
    parts = run.config.micro_batches
    part = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0] // parts, *x.shape[1:]), x.dtype, sharding=x.sharding), batch
    )
    everywhere = NamedSharding(run.mesh, PartitionSpec())
    inputs = (
        run.state.trained,
        run.state.frozen,
        part,
        jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),
        reference,
    )
    resident = (run.state.optimizer, [part] * (parts - 1))
    if parts == 1:
        gradient = Program(update.gradient, inputs, 1, resident)
        _, metrics = jax.eval_shape(update.gradient, *inputs)
    else:
        gradient = Program(update.add, (run.state.trained, *inputs), parts, resident)
        _, metrics = jax.eval_shape(update.add, run.state.trained, *inputs)
    metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), metrics)
    arguments = (run.state.trained, run.state.optimizer, run.state.trained, [metrics] * parts)
    return [gradient, Program(update.apply, arguments, 1, (run.state.frozen, reference, [part] * parts))]


def _rows(run: Run, rows: int, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=rows_sharding(run.mesh))


def _tiles(run: Run) -> int:
    data = run.config.data
    return data.max_images * (data.max_tiles + (data.max_tiles > 1))


def _features(run: Run, rows: int) -> jax.ShapeDtypeStruct:
    """What `vision_features` leaves of a batch's tiles."""
    architecture = run.architecture
    width = architecture.vision.width * architecture.shuffle**2
    return _rows(run, rows, (_tiles(run), architecture.tokens_per_tile, width), jnp.dtype(architecture.dtype))


def _batch(run: Run, rows: int, completion: int) -> Batch:
    prompt, side = run.config.data.prompt_buckets[-1], run.architecture.vision.image_size
    number = _rows(run, rows, (), jnp.int32)
    return Batch(
        tiles=_rows(run, rows, (_tiles(run), side, side, 3), jnp.uint8),
        prompt_ids=_rows(run, rows, (prompt,), jnp.int32),
        prompt_mask=_rows(run, rows, (prompt,), bool),
        completion_ids=_rows(run, rows, (1, completion), jnp.int32),
        completion_mask=_rows(run, rows, (1, completion), bool),
        index=number,
        answer=number,
        num_options=number,
        dimension=number,
    )


def measure(run: Run, name: str, programs: list[Program], slices: int = 1) -> dict[str, Any]:
    """Compiles a step and says what it needs.

    Bytes are those of one chip. `peak_bytes_per_chip` is the greatest, over the step's programs, of arguments, outputs that take
    no argument's place, temporaries, and what else lies in memory meanwhile (the optimiser's state during a gradient, say).
    `argument_bytes` and `temp_bytes` are those of that program. Collectives and their bytes are of a whole step, loops counted.

    `roofline_s` = max(compute_s, links_s, data_centre_s), a bound that no run of the step beats:
      compute_s = model FLOPs of the step / (chips x peak FLOP/s), without padding's and rematerialisation's;
      links_s = bytes that a chip must receive / the rate of all its links (all-gather, reduce-scatter and all-to-all of n
          devices: (n - 1) / n of the array; all-reduce twice that), data_centre_s the same for those that cross slices.
    It leaves out reading weights and caches from memory, which bounds sampling token by token.

    A step that doesn't fit has `fits` false, and of the rest only what the compiler said it needs.
    """
    devices = run.mesh.size
    began, report, found = time.perf_counter(), None, []
    stacks = gathered_stacks(run.parameters)
    for program in programs:
        try:
            with jax.set_mesh(run.mesh):
                compiled = program.function.lower(*program.arguments).compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"fits": False, "compile_s": time.perf_counter() - began} | _refused(str(error))
        here = collectives(compiled.as_text(), devices, trips=program.trips, per_slice=devices // slices)
        found += [each._replace(count=each.count * program.runs) for each in here]
        memory = compiled.memory_analysis()
        sizes = {
            "peak_bytes_per_chip": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
            + sum(map(_device_bytes, jax.tree.leaves(program.resident))),
            "argument_bytes": memory.argument_size_in_bytes,
            "temp_bytes": memory.temp_size_in_bytes,
        }
        if report is None or sizes["peak_bytes_per_chip"] > report["peak_bytes_per_chip"]:
            report = sizes
    counts, total = summarize_collectives(found)
    report |= {"collectives": counts, "collective_bytes": total, "compile_s": round(time.perf_counter() - began, 1)}
    wanted = name == "rollout" and run.config.mesh.hold_layers
    gathers = [] if wanted else stack_gathers(found, stacks)
    report["warnings"] = [
        f"gathers a parameter of all layers at once, {list(shape)}: the layer scan should gather one layer at a time"
        for shape in gathers
    ]
    return report | _roofline(run, name, found)


def _device_bytes(x: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(x.sharding.shard_shape(x.shape))) * jnp.dtype(x.dtype).itemsize


def gathered_stacks(parameters: Parameters) -> list[tuple[int, ...]]:
    """Shapes on one device of stacked parameters that fsdp keeps in pieces, were they put together.

    Args:
        parameters: abstract, with shardings.
    """
    shapes = []
    for x in jax.tree.leaves(parameters):
        spec = tuple(x.sharding.spec)
        if "fsdp" in spec and spec[0] is None and len(x.shape) > 2:
            shape = list(x.sharding.shard_shape(x.shape))
            shape[spec.index("fsdp")] *= x.sharding.mesh.shape["fsdp"]
            shapes.append(tuple(shape))
    return shapes


def _roofline(run: Run, name: str, found: list[Collective]) -> dict[str, float]:
    config, architecture = run.config, run.architecture
    chip = tpu_chip(run.mesh.devices.flat[0].device_kind)
    rows, prompt = config.batch_size, config.data.prompt_buckets[-1]
    if name == "sft":
        group, length = 1, config.data.completion_buckets[-1]
    else:
        group, length = config.grpo.num_generations, config.max_completion_length
    forward = forward_flops(architecture, rows * _tiles(run), np.full(rows, prompt), np.full((rows, group), length))
    frozen = "vision" in config.model.freeze
    passes = {
        "sft": (1 if frozen else 3, 3),
        "rollout": (1, 1),
        "update": (0 if frozen else 3, 3 + (config.method == "grpo" and config.grpo.beta > 0)),
    }[name]
    flops = (passes[0] * forward.vision + passes[1] * forward.language) / run.mesh.size
    report = {"model_flops_per_chip": flops}
    if chip is None:
        return report
    near = sum(each.count * each.wire_bytes for each in found if not each.across_slices)
    far = sum(each.count * each.wire_bytes for each in found if each.across_slices)
    times = {"compute_s": flops / chip.flops, "links_s": near / chip.links, "data_centre_s": far / _DATA_CENTRE_LINKS}
    return report | times | {"roofline_s": max(times.values())}


def _refused(message: str) -> dict[str, int]:
    """Bytes that XLA says it would need and has."""
    said = re.search(r"[Uu]sed ([\d.]+)([KMG]) of ([\d.]+)([KMG])", message)
    if said is None:
        return {}
    used, unit, limit, limit_unit = said.groups()
    return {
        "peak_bytes_per_chip": int(float(used) * _UNITS[unit]),
        "compiler_limit_bytes": int(float(limit) * _UNITS[limit_unit]),
    }


def larger_runs(config: ConfigDict, mesh: Mesh) -> Iterator[tuple[int, Run]]:
    """Runs with 1, 2, 4, ... rows of a part on each device, without end."""
    rows = 1
    while True:
        tried = config.copy_and_resolve_references().unlock()
        tried.batch_size, tried.micro_batches = 2 * rows * row_shards(mesh), 2
        yield rows, prepare_ahead(tried, mesh)
        rows *= 2
