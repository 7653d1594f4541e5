"""Compiles a config's steps for a TPU that isn't attached; prints what they need as JSON.

Example:
  aesthetic-jax compile --config=configs/sft_internvl3_2b.py --topology=v5e:4x4

The report has, for each step, the bytes per chip and whether they fit, the collectives and their
bytes, and a lower bound on the time. aesthetic_jax/aot/report.py and roofline.py explain the
fields. Shapes are the config's largest buckets; no data set is read. Needs libtpu, the TPU compiler
(pip install 'jax[tpu]'), but no TPU.
"""

import importlib.util
import json
import os

from absl import flags

from aesthetic_jax.command_line import define_config, require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string(
    "topology",
    None,
    "kind and shape of a slice, such as v5e:4x4, v5p:2x2x4, v6e:16x16",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "slices", 1, "number of slices of that shape", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_list(
    "steps",
    [],
    "steps to compile, of sft, rollout and update; empty: all steps of the config",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "largest_batch",
    False,
    "also find the most rows of a microbatch per chip that fit; compiles several times",
    flag_values=FLAGS,
)


def main(arguments: flags.FlagValues) -> None:
    """Compiles the steps and prints the report."""
    config, topology = require(arguments, "config"), require(arguments, "topology")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "compile: libtpu, the TPU compiler, is not installed; "
            "pip install 'jax[tpu]' (no TPU is needed)"
        )
    # JAX and libtpu read these when they are loaded: use no accelerator, don't query a TPU VM's
    # metadata server, and don't claim libtpu for this process alone.
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    import jax

    jax.config.update("jax_platforms", "cpu")
    # JAX's cache can't read back programs of devices that aren't attached.
    jax.config.update("jax_enable_compilation_cache", False)
    from aesthetic_jax.aot.programs import abstract_setup, step_programs
    from aesthetic_jax.aot.report import largest_rows, measure_step
    from aesthetic_jax.aot.topology import count_chips, describe_devices
    from aesthetic_jax.training.chips import TPU_CHIPS
    from aesthetic_jax.training.config import check_config
    from aesthetic_jax.training.mesh import describe_mesh, make_mesh

    check_config(config, needs_data=False)
    devices = describe_devices(topology, arguments.slices)
    mesh = make_mesh(config.mesh, devices)
    setup = abstract_setup(config, mesh)
    programs = step_programs(setup)
    if unknown := set(arguments.steps) - programs.keys():
        raise UserError(
            f"--steps: the config has no '{min(unknown)}'; its steps are {', '.join(programs)}"
        )
    chip = TPU_CHIPS.get(devices[0].device_kind)
    report = {
        "device_kind": devices[0].device_kind,
        "chips": count_chips(devices),
        "topology": topology,
        "slices": arguments.slices,
        "mesh": describe_mesh(mesh),
        "batch_size": config.batch_size,
        "micro_batches": config.micro_batches,
        "memory_bytes_per_chip": chip and chip.memory,
        "steps": {},
    }
    for name in arguments.steps or programs:
        step = measure_step(setup, name, programs[name], arguments.slices)
        if arguments.largest_batch and chip:
            step["largest_rows_per_chip"] = largest_rows(config, mesh, name, arguments.slices)
        report["steps"][name] = step
    print(json.dumps(report, indent=2))
