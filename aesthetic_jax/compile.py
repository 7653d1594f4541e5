"""Compiles a config's steps for a TPU that isn't here and prints, as JSON, what they need of each chip.

aesthetic-jax compile --config=configs/X.py --topology=v5e:4x4 [--slices=N] [--config.a.b=value ...]

Needs libtpu, the TPU compiler, and no TPU. Shapes are the config's largest buckets. The fields are explained in
aesthetic_jax/training/ahead.py.
"""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator

from absl import flags

from aesthetic_jax.command_line import define_config, require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string(
    "topology", None, "kind and shape of a slice, such as v5e:4x4, v5p:2x2x4, v6e:16x16", flag_values=FLAGS
)
flags.DEFINE_integer("slices", 1, "slices of that shape, side by side", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list("steps", [], "of sft, rollout and update; empty: all that the config has", flag_values=FLAGS)
flags.DEFINE_bool(
    "largest_batch", False, "also search the most rows of a part that fit; compiles again", flag_values=FLAGS
)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config, topology = require(arguments, "config"), require(arguments, "topology")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compile: libtpu, the TPU compiler, is not installed; pip install 'jax[tpu]' (no TPU is needed)"
        )
    # Read when JAX and libtpu are loaded: no accelerator is looked for, nor a TPU's metadata server, nor other users of libtpu.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    import jax

    jax.config.update("jax_platforms", "cpu")
    from aesthetic_jax.training import ahead
    from aesthetic_jax.training.config import check_config
    from aesthetic_jax.training.flops import tpu_chip
    from aesthetic_jax.training.mesh import describe_mesh, make_mesh

    if not config.data.manifest and not config.data.data_dir:
        config.data.data_dir = "unread"  # only shapes count here
    check_config(config)
    devices = _devices(topology, arguments.slices)
    mesh = make_mesh(config.mesh, devices)
    run = ahead.prepare_ahead(config, mesh)
    with jax.set_mesh(mesh):
        programs = ahead.steps(run)
    if unknown := set(arguments.steps) - programs.keys():
        raise UserError(f"--steps: the config has no '{min(unknown)}'; its steps are {', '.join(programs)}")
    kind = devices[0].device_kind
    chip = tpu_chip(kind)
    report = {
        "device_kind": kind,
        "chips": len({(getattr(device, "slice_index", 0), *device.coords) for device in devices}),
        "topology": topology,
        "slices": arguments.slices,
        "mesh": describe_mesh(mesh),
        "batch_size": config.batch_size,
        "micro_batches": config.micro_batches,
        "memory_bytes_per_chip": chip and chip.memory,
        "steps": {},
    }
    for name in arguments.steps or programs:
        step = ahead.measure(run, name, programs[name], arguments.slices)
        if chip and "peak_bytes_per_chip" in step:
            step["memory_share"] = round(step["peak_bytes_per_chip"] / chip.memory, 4)
            step.setdefault("fits", step["peak_bytes_per_chip"] <= chip.memory)
        if arguments.largest_batch and chip:
            step["largest_rows_per_chip"] = _largest(config, mesh, name, arguments.slices, chip.memory)
        report["steps"][name] = step
    print(json.dumps(report, indent=2))


def _devices(topology: str, slices: int) -> list:
    """Devices of slices that aren't here."""
    from jax.experimental import topologies

    several = {"num_slices": slices} if slices > 1 else {}
    try:
        with _without_stderr():
            return topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices
    except Exception as error:  # XLA says in many ways that it doesn't know a name
        raise UserError(
            f"--topology={topology}: the compiler refuses it ({str(error).splitlines()[0][:200]})"
        ) from None


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """libtpu complains there, past Python, that this machine has no TPU."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _largest(config, mesh, name: str, slices: int, memory: int) -> int:
    """The most rows of a part on each chip, of 1, 2, 4, ..., that fit; 0: none."""
    import jax

    from aesthetic_jax.training import ahead

    largest = 0
    for rows, run in ahead.larger_runs(config, mesh):
        with jax.set_mesh(mesh):
            programs = ahead.steps(run)[name]
        step = ahead.measure(run, name, programs, slices)
        if not step.get("fits", True) or step["peak_bytes_per_chip"] > memory:
            return largest
        largest = rows
    return largest
