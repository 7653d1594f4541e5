"""Training on a mesh: eight devices against one, all-gathers, refusals."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.mesh import (
    check_rows,
    gather_rows,
    local_rows,
    make_mesh,
    mesh_shape,
    put_rows,
    take_local,
)
from aesthetic_jax.training.update import microbatch_rows

ONE = "1x1x1/none"
SPLITS = os.environ.get(
    "MESH_SPLITS", "1x8x1/none 2x2x2/full"
).split()  # data x fsdp x tensor / remat


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What mesh_runs.py found on eight virtual devices, by mesh/remat/name."""
    out = tmp_path_factory.mktemp("mesh") / "runs.npz"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    words = [sys.executable, pathlib.Path(__file__).with_name("mesh_runs.py"), out, ONE, *SPLITS]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(np.load(out))


def of(runs, split, prefix):
    return {name: x for name, x in runs.items() if name.startswith(f"{split}/{prefix}")}


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_losses_over_several_steps_are_those_of_one_device(runs, split):
    for name in ("sft/loss", "grpo/loss", "grpo/kl", "grpo/ratio/mean"):
        whole, ours = runs[f"{ONE}/{name}"], runs[f"{split}/{name}"]
        assert len(set(whole)) > 1
        scale = np.abs(whole).max()  # a GRPO loss goes through 0
        np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_gradients_are_those_of_one_device(runs, split):
    whole = of(runs, ONE, "gradient/")
    assert len(whole) > 30
    for name, x in whole.items():
        if name.endswith(
            "vision.layers.key.bias"
        ):  # its gradient is only rounding: softmax ignores shifts
            continue
        y = runs[name.replace(ONE, split)]
        error = np.linalg.norm(x - y) / max(np.linalg.norm(x), 1e-6)
        assert error < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_rollouts_are_those_of_one_device_token_for_token(runs, split):
    np.testing.assert_array_equal(runs[f"{split}/rollout/ids"], runs[f"{ONE}/rollout/ids"])
    whole = runs[f"{ONE}/rollout/logprobs"]
    np.testing.assert_allclose(runs[f"{split}/rollout/logprobs"], whole, rtol=1e-5, atol=1e-5)
    assert len(np.unique(runs[f"{split}/rollout/ids"])) > 20


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_microbatches_hold_every_row_once(runs, split):
    np.testing.assert_array_equal(runs[f"{split}/rows"], runs[f"{ONE}/rows"])


@pytest.mark.slow
@pytest.mark.parametrize("split", [split for split in SPLITS if split.split("x")[1] != "1"])
def test_layers_are_gathered_one_at_a_time(runs, split):
    assert runs[f"{split}/gathers/stacks"] == 0
    assert (
        runs[f"{split}/gathers/layers"] >= 2 * 5
    )  # five layers, forward and backward; matrices apart or together


@pytest.mark.slow
@pytest.mark.parametrize("split", [split for split in SPLITS if split.split("/")[0].endswith("x1")])
def test_the_heads_gradient_is_not_summed_for_every_chunk(runs, split):
    assert not runs[f"{split}/sums/head"].size


def test_rows_go_to_devices_and_back():
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    rows = {"x": np.arange(6).reshape(3, 2), "y": np.arange(3)}
    placed = put_rows(mesh, rows)
    for name, x in rows.items():
        np.testing.assert_array_equal(take_local(placed[name]), x)
        np.testing.assert_array_equal(gather_rows(mesh, rows)[name], x)
    np.testing.assert_array_equal(local_rows(mesh, 5), np.arange(5))


def test_microbatches_stay_within_their_shards():
    lengths = np.array([5, 1, 4, 2, 8, 7, 6, 3])
    chosen = microbatch_rows(lengths, 2, shards=2)
    np.testing.assert_array_equal(chosen, [[1, 3, 7, 6], [2, 0, 5, 4]])
    np.testing.assert_array_equal(microbatch_rows(lengths, 1, shards=4), [np.arange(8)])


@pytest.mark.parametrize(
    ("sizes", "devices", "slices", "expected"),
    [
        ((0, -1, 1), 16, 1, (1, 16, 1)),
        ((0, -1, 1), 32, 2, (2, 16, 1)),
        ((0, -1, 2), 16, 1, (1, 8, 2)),
        ((-1, 4, 2), 32, 1, (4, 4, 2)),
        ((4, -1, 1), 32, 2, (4, 8, 1)),
        ((2, 2, 0), 16, 1, (2, 2, 4)),
    ],
)
def test_what_is_left_of_a_mesh(sizes, devices, slices, expected):
    settings = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    assert tuple(mesh_shape(settings, devices, slices).values()) == expected


@pytest.mark.parametrize(
    ("sizes", "devices", "slices", "words"),
    [
        ((1, 3, 1), 8, 1, ["config.mesh", "fsdp=3", "8 devices"]),
        ((1, 4, 1), 8, 1, ["config.mesh", "fsdp=4", "8 devices"]),
        ((1, -1, -1), 8, 1, ["config.mesh", "both fsdp and tensor"]),
        ((1, -1, 1), 8, 2, ["config.mesh.data", "2 slices"]),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, devices, slices, words):
    settings = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    with pytest.raises(UserError) as error:
        mesh_shape(settings, devices, slices)
    assert all(word in str(error.value) for word in words)


def test_batches_that_do_not_divide_are_refused():
    mesh = jax.sharding.AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))
    check_rows(mesh, "batch_size", 32, 4)
    with pytest.raises(UserError) as error:
        check_rows(mesh, "batch_size", 32, 8)
    for word in ("config.batch_size", "config.micro_batches", "data=2, fsdp=4, tensor=2", "= 8"):
        assert word in str(error.value)
