"""`aesthetic-jax compile`: with the real TPU compiler where libtpu is installed; its errors."""

import importlib.util
import json
import pathlib

import pytest

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


def config(method):
    return f"--config={CONFIGS}/quickstart.py:{method}"


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("method", "steps"), [("sft", {"sft"}), ("hcm_grpo", {"rollout", "update"})]
)
def test_the_tiny_model_compiles_for_a_slice(command, method, steps):
    result = command(
        "compile", config(method), "--topology=v5e:2x2", "--config.max_completion_length=24"
    )
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads(result.stdout)
    assert report["device_kind"] == "TPU v5 lite"
    assert report["chips"] == 4
    assert report["mesh"] == "data=1, fsdp=4, tensor=1"
    assert report["steps"].keys() == steps
    for step in report["steps"].values():
        assert step["fits"]
        assert step["temp_bytes"] > 0
        assert step["argument_bytes"] + step["temp_bytes"] <= step["peak_bytes_per_chip"] < 2**30
        assert step["compile_s"] > 0
        # A layer's matrices: layer by layer, or once for a rollout.
        assert step["collectives"]["all-gather"] >= 7
        assert step["collective_bytes"].keys() == step["collectives"].keys()
        assert step["warnings"] == []
        assert step["roofline_s"] == max(step["compute_s"], step["links_s"], step["data_centre_s"])


@needs_libtpu
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--topology=v5e:0x9"], ["--topology=v5e:0x9"]),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], ["config.mesh", "fsdp=3", "4 devices"]),
        (
            ["--topology=v5e:2x2", "--config.batch_size=6"],
            ["config.batch_size", "6 rows", "config.mesh"],
        ),
        (["--topology=v5e:2x2", "--steps=update"], ["--steps", "update", "sft"]),
    ],
)
def test_bad_input_is_one_line(command, words, expected, refuses):
    refuses(command("compile", config("sft"), *words), *expected)


def test_missing_flags_and_a_missing_compiler_are_one_line(command, refuses):
    refuses(command("compile", config("sft")), "--topology")
    if importlib.util.find_spec("libtpu") is None:
        refuses(
            command("compile", config("sft"), "--topology=v5e:2x2"),
            "libtpu",
            "pip install 'jax[tpu]'",
        )
