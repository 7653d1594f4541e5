"""Collectives counted in the text of a compiled program."""

import pathlib

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aesthetic_jax.aot.collectives import (
    collectives,
    gathered_stacks,
    stack_gathers,
    summarize_collectives,
)

# As XLA prints for CPU and TPU: a sampling loop, which stops by itself, over a loop of 28 layers.
TEXT = (pathlib.Path(__file__).parent / "program.hlo").read_text()


def test_collectives_count_once_per_iteration():
    counts, sizes = summarize_collectives(collectives(TEXT, 16, trips=512))
    assert counts == {
        "all-gather": 28 * 512 + 2 + 3,
        "all-reduce": 2,
        "collective-permute": 1,
        "reduce-scatter": 2,
    }
    assert (
        sizes["all-gather"]
        == 28 * 512 * 1536 * 64 * 2 + 1536 * 32 * 2 + 28 * 1536 * 64 * 4 + 3 * 64 * 64 * 2
    )
    assert sizes["all-reduce"] == 400 + 60
    assert sizes["reduce-scatter"] == 1024 * 64 * 4 + 16 * 4 * 8 * 4
    assert sizes["collective-permute"] == 200


def test_wire_bytes_and_crossed_slices():
    found = {x.shapes: x for x in collectives(TEXT, 16, trips=512, per_slice=8)}
    assert found[(1536, 64),].count == 28 * 512
    assert found[(1536, 64),].in_loop
    assert found[(1536, 64),].wire_bytes == 1536 * 64 * 2 * 15 / 16
    assert (found[(64, 64),].count, found[(64, 64),].wire_bytes) == (3, 64 * 64 * 2 * 7 / 8)
    assert found[(28, 1536, 64),].wire_bytes == 28 * 1536 * 64 * 4 * 3 / 4
    assert found[(100,),].wire_bytes == 2 * 400 / 2
    assert [shapes for shapes, x in found.items() if x.across_slices] == [
        ((1536, 32),),
        ((100,),),
        ((1024, 64),),
        ((4, 8),),
        ((1536, 64),),
    ]


def test_finds_gathers_of_all_layers():
    found = collectives(TEXT, 16)
    assert stack_gathers(found, [(28, 1536, 64), (28, 96)]) == [(28, 1536, 64)]
    assert stack_gathers(found, [(28, 1536, 32)]) == []


def test_gathered_stacks_are_the_shapes_of_one_device_put_together_along_fsdp():
    mesh = jax.sharding.AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))

    def parameter(shape, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)

    parameters = {
        "layers": parameter((28, 64, 96), None, "fsdp", "tensor"),
        "norms": parameter((28, 64), None, "fsdp"),
        "embedding": parameter((512, 64), "tensor", "fsdp"),
        "whole": parameter((28, 64, 96)),
    }
    assert gathered_stacks(parameters) == [(28, 64, 48)]
