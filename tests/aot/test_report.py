"""The report on a compiled step: memory, roofline, whether it fits."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aesthetic_jax.aot import report
from aesthetic_jax.aot.collectives import Collective
from aesthetic_jax.aot.programs import Program
from aesthetic_jax.aot.roofline import roofline
from aesthetic_jax.training.chips import TPU_CHIPS, Chip


@pytest.fixture
def cpu_chip(monkeypatch):
    """Lets a CPU count as a chip with so many bytes of memory."""

    def set_memory(memory):
        monkeypatch.setitem(TPU_CHIPS, jax.devices()[0].device_kind, Chip(1e9, memory, 1e6))

    return set_memory


def double(mesh, elements, resident):
    """A program that doubles float32 numbers while others stay in memory."""

    def array(n):
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct((n,), jnp.float32, sharding=sharding)

    return Program(jax.jit(lambda x: 2 * x), (array(elements),), 1, [array(resident)])


def test_the_peak_is_of_the_program_that_needs_most(make_setup, cpu_chip):
    setup = make_setup("sft")
    programs = [double(setup.mesh, 1000, 6000), double(setup.mesh, 2000, 1000)]
    assert "fits" not in report.measure_step(setup, "sft", programs)  # unknown memory
    cpu_chip(80_000)
    step = report.measure_step(setup, "sft", programs)
    assert step["argument_bytes"] == 4000
    assert step["peak_bytes_per_chip"] == 4 * (1000 + 1000 + 6000) + step["temp_bytes"]
    assert step["memory_share"] == round(step["peak_bytes_per_chip"] / 80_000, 4)
    assert step["fits"]
    assert step["collectives"] == step["collective_bytes"] == {}
    assert step["warnings"] == []
    cpu_chip(30_000)
    assert not report.measure_step(setup, "sft", programs)["fits"]


def test_a_step_that_the_compiler_refuses_does_not_fit(make_setup, cpu_chip):
    cpu_chip(16 * 2**30)
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm."

    def refuse(*_):
        raise jax.errors.JaxRuntimeError(message)

    program = Program(types.SimpleNamespace(lower=refuse), (), 1, None)
    step = report.measure_step(make_setup("sft"), "sft", [program])
    assert not step["fits"]
    assert step["peak_bytes_per_chip"] == int(20.5 * 2**30)
    assert step["compiler_limit_bytes"] == int(15.75 * 2**30)
    message = "INTERNAL: a bug"
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        report.measure_step(make_setup("sft"), "sft", [program])


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (1, 1), (7, 4)])
def test_the_largest_microbatch_is_a_power_of_two(make_setup, monkeypatch, limit, expected):
    def measure_step(setup, name, programs, slices):
        rows = setup.config.batch_size // setup.config.micro_batches
        return {"fits": rows <= limit}

    setup = make_setup("sft")
    monkeypatch.setattr(report, "measure_step", measure_step)
    monkeypatch.setattr(report, "step_programs", lambda setup: {"sft": []})
    monkeypatch.setattr(
        report, "abstract_setup", lambda config, mesh: types.SimpleNamespace(config=config)
    )
    assert report.largest_rows(setup.config, setup.mesh, "sft") == expected


def test_the_roofline_is_the_slowest_of_arithmetic_and_links(make_setup, cpu_chip):
    cpu_chip(2**30)
    setup = make_setup("grpo", grpo__beta=0.1)
    found = [
        Collective("all-gather", ((8,),), 32, 28.0, 1000, True, False),
        Collective("all-reduce", ((8,),), 32, 56.0, 10, False, True),
    ]
    times = roofline(setup, "update", found)
    assert times["compute_s"] == times["model_flops_per_chip"] / 1e9
    assert times["links_s"] == 28.0 * 1000 / 1e6
    assert times["data_centre_s"] == 56.0 * 10 / 6.25e9
    assert times["roofline_s"] == max(times["compute_s"], times["links_s"])
    # An update takes 3 language forward passes and the reference's; the frozen tower none.
    rollout = roofline(setup, "rollout", [])["model_flops_per_chip"]
    assert 0 < times["model_flops_per_chip"] < 4 * rollout
