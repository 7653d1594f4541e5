"""scripts/bench_data.py with few samples: both benchmarks print their figures."""

import json

import pytest


@pytest.fixture(scope="module")
def run(load_script):
    return load_script("bench_data").main


def test_loading(run, capsys):
    run(["bench_data.py", "--benchmark=loading", "--samples=4", "--batch_size=2", "--epochs=2"])
    result = json.loads(capsys.readouterr().out)
    assert result["benchmark"] == "loading"
    for name in ("images_per_s", "images_per_s_core", "resident_mb"):
        assert len(result[name]) == 2
        assert min(result[name]) > 0


def test_an_epoch(run, capsys):
    run(["bench_data.py", "--benchmark=epoch", "--samples=240", "--epochs=1", "--batch_size=1"])
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 200  # two rounds of 100 steps
    assert 100 < result["seen"] <= 200
    assert result["plan_bytes"] == 4 * 100
    assert result["table_bytes"] == 240 * (8 + 4 + 4 + 4)
    assert result["checkpoint_bytes"] > result["plan_bytes"] + result["table_bytes"]
    assert result["plan_s"] > 0
