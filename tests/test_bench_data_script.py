"""scripts/bench_data.py with few samples: both benchmarks run and print what they promise."""

import json

import pytest


@pytest.fixture(scope="module")
def run(load_script):
    return load_script("bench_data").main


def test_loading(run, capsys):
    run(["bench_data.py", "--benchmark=loading", "--samples=4", "--batch_size=2", "--epochs=2"])
    told = json.loads(capsys.readouterr().out)
    assert told["benchmark"] == "loading"
    for name in ("images_per_s", "images_per_s_core", "resident_mb"):
        assert len(told[name]) == 2
        assert min(told[name]) > 0


def test_an_epoch(run, capsys):
    run(["bench_data.py", "--benchmark=epoch", "--samples=240", "--epochs=1", "--batch_size=1"])
    told = json.loads(capsys.readouterr().out)
    assert told["steps"] == 200  # two rounds of 100 steps
    assert 100 < told["seen"] <= 200
    assert told["plan_bytes"] == 4 * 100
    assert told["table_bytes"] == 240 * (8 + 4 + 4)
    assert told["checkpoint_bytes"] > told["plan_bytes"] + told["table_bytes"]
    assert told["plan_s"] > 0
