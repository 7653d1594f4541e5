"""`aesthetic-jax sweep` as a person runs it: two experiments, started again, and what it refuses."""

import json
import pathlib

import pytest

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SWEEP = """
from ml_collections import ConfigDict

SMALL = ("num_steps=2", "batch_size=4", "log_every=1", "hard_cases.round_steps=2", "max_completion_length=8")


def get_config():
    mined = ("hard_cases.mode=two_stage", "hard_cases.mine_rollouts=2")
    sweep = ConfigDict()
    sweep.config = "{configs}/quickstart.py:hcm_grpo"
    sweep.experiments = (("plain", (*SMALL, "hard_cases.mode=off")), ("mined", (*SMALL, *mined)))
    return sweep
"""


@pytest.fixture(scope="module")
def source(command, tmp_path_factory):
    """A data set, a model, and a sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ("--num=30", "--image_size=56", "--workers=1", "--splits=0.5,0.1,0.4")
    assert command("synthesize", f"--out={folder}", *words).returncode == 0
    assert (
        command("build", f"--manifest={folder}/manifest.jsonl", f"--out={folder}/data", "--workers=1").returncode == 0
    )
    words = ("train", f"--config={CONFIGS}/quickstart.py:sft", f"--config.data.data_dir={folder}/data")
    small = ("--config.num_steps=1", "--config.batch_size=4", f"--workdir={folder}/start0")
    assert command(*words, *small).returncode == 0
    (folder / "sweep.py").write_text(SWEEP.format(configs=CONFIGS))
    return folder


def sweep(command, source, out, *more):
    words = (
        f"--sweep={source}/sweep.py",
        f"--data_dir={source}/data",
        f"--init_from={source}/start{{seed}}",
        f"--out={out}",
    )
    return command("sweep", *words, "--seeds=0", *more)


def test_a_sweep_runs_once_and_lays_its_experiments_side_by_side(command, source, tmp_path):
    out = tmp_path / "out"
    result = sweep(command, source, out)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["experiments"].keys() == {"start", "plain", "mined"}
    assert all(0 <= share <= 1 for shares in summary["exact_on_hard_quarter"].values() for share in shares)
    assert summary["experiments"]["mined"] == [json.loads((out / "seed0" / "mined" / "metrics.json").read_text())]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in (out / "table.txt").read_text().splitlines()] == [
        "exact",
        "start",
        "plain",
        "mined",
        "best",
    ]
    runs = sorted(out.glob("seed*/runs/*/metrics.jsonl"))
    assert len(runs) == 2
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.suffix in (".json", ".jsonl")}
    again = sweep(command, source, out)
    assert again.stdout == result.stdout
    assert again.stderr == ""  # no command was run
    del before[out / "summary.json"]
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())


def test_what_a_sweep_refuses(command, source, tmp_path):
    for words, expected in (
        (("--experiments=other",), ["--experiments", "other", "plain, mined"]),
        (("--seeds=a",), ["--seeds", "'a'"]),
        (("--sweep=nowhere.py",), ["nowhere.py"]),
        ((f"--sweep={CONFIGS}/quickstart.py",), ["--sweep", "no field"]),
    ):
        result = sweep(command, source, tmp_path / "out", *words)
        assert result.returncode == 2, result.stderr
        assert result.stderr.count("\n") == 1
        assert all(word in result.stderr for word in expected), result.stderr
    assert not (tmp_path / "out").exists()
