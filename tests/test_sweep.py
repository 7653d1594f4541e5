"""`aesthetic-jax sweep` as a whole command: two experiments, a second start, bad input."""

import json
import pathlib
import shutil

import pytest

from aesthetic_jax.sweep import hardest_quarter

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SWEEP = """
from ml_collections import ConfigDict

SMALL = ("num_steps=2", "batch_size=4", "log_every=1", "max_completion_length=8")
ROUNDS = ("hard_cases.round_steps=2",)


def get_config():
    mined = ("hard_cases.mode=two_stage", "hard_cases.mine_rollouts=2")
    sweep = ConfigDict()
    sweep.config = "{configs}/quickstart.py:hcm_grpo"
    sweep.experiments = (
        ("plain", (*SMALL, *ROUNDS, "hard_cases.mode=off")),
        ("mined", (*SMALL, *ROUNDS, *mined)),
    )
    return sweep
"""


@pytest.fixture
def sweep_file(tmp_path):
    file = tmp_path / "sweep.py"
    file.write_text(SWEEP.format(configs=CONFIGS))
    return file


@pytest.fixture(scope="module")
def source(command, tmp_path_factory):
    """A folder with a data set in data/ and a model in start0/."""
    folder = tmp_path_factory.mktemp("sweep")
    size = ("--num=30", "--image_size=56", "--workers=1", "--splits=0.5,0.1,0.4")
    sft = f"--config={CONFIGS}/quickstart.py:sft"
    data = f"--config.data.data_dir={folder}/data"
    small = ("--config.num_steps=1", "--config.batch_size=4")
    steps = (
        ("synthesize", *size, f"--out={folder}"),
        ("build", f"--manifest={folder}/manifest.jsonl", "--workers=1", f"--out={folder}/data"),
        ("train", sft, data, *small, f"--workdir={folder}/start0"),
    )
    for words in steps:
        result = command(*words)
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


def words(sweep_file, source, out, *more):
    """A sweep of one seed."""
    init = f"--init_from={source}/start{{seed}}"
    files = (f"--sweep={sweep_file}", f"--data_dir={source}/data", init, f"--out={out}")
    return ("sweep", *files, "--seeds=0", *more)


@pytest.mark.slow
def test_a_sweep_compares_its_experiments_and_skips_finished_ones(
    command, sweep_file, source, tmp_path
):
    out = tmp_path / "out"
    result = command(*words(sweep_file, source, out))
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["experiments"].keys() == {"start", "plain", "mined"}
    hard = summary["exact_on_hard_quarter"]
    assert all(0 <= share <= 1 for shares in hard.values() for share in shares)
    metrics = json.loads((out / "seed0" / "mined" / "metrics.json").read_text())
    assert summary["experiments"]["mined"] == [metrics]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = [line.split()[0] for line in (out / "table.txt").read_text().splitlines()]
    scores = ["exact", "start", "plain", "mined", "best"]
    assert rows == [*scores, "difference", "plain", "mined", "difference", "mined"]
    assert {x["against"] for x in summary["differences"].values()} == {"start"}
    (between,) = summary["differences_between_experiments"].values()
    values = [summary["experiments"][x][0]["overall"]["exact"]["value"] for x in ("mined", "plain")]
    assert between["overall"]["value"] == pytest.approx(values[0] - values[1])
    assert len(list(out.glob("seed*/runs/*/metrics.jsonl"))) == 2

    files = [file for file in out.rglob("*") if file.suffix in (".json", ".jsonl")]
    times = {file: file.stat().st_mtime_ns for file in files}
    again = command(*words(sweep_file, source, out))
    assert again.stdout == result.stdout
    assert again.stderr == ""  # no command was run
    del times[out / "summary.json"]
    assert all(file.stat().st_mtime_ns == time for file, time in times.items())

    shutil.rmtree(out / "seed0" / "start" / "mined")
    without = command(*words(sweep_file, source, out, "--nohard_quarter"))
    assert without.stderr == ""  # nothing was mined
    assert "hard quarter" in result.stdout
    assert "hard quarter" not in without.stdout


def test_ties_at_the_border_of_the_hard_quarter_are_broken_at_random():
    rates = {f"{i:03d}": 0.0 if i >= 180 else 0.5 for i in range(200)}
    hardest = hardest_quarter(rates)
    assert len(hardest) == 50
    assert {name for name in rates if rates[name] == 0} < set(hardest)
    ties = [int(name) for name in hardest if rates[name]]
    assert 60 < sum(ties) / len(ties) < 120  # by name they would be the first ones: 14.5
    assert hardest_quarter(dict(reversed(rates.items()))) == hardest


@pytest.mark.slow
def test_what_a_sweep_refuses(command, sweep_file, tmp_path, refuses):
    config = f"sweep.config = '{CONFIGS}/quickstart.py:hcm_grpo'"
    for name, experiments in (("reserved", "(('runs', ()),)"), ("no_pairs", "('plain', 'mined')")):
        lines = [
            "from ml_collections import ConfigDict",
            "def get_config():",
            "    sweep = ConfigDict()",
            f"    {config}",
            f"    sweep.experiments = {experiments}",
            "    return sweep",
        ]
        (tmp_path / f"{name}.py").write_text("\n".join(lines))
    for more, expected in (
        (("--experiments=other",), ["--experiments", "other", "plain, mined"]),
        (("--seeds=a",), ["--seeds", "'a'"]),
        (("--seeds=",), ["--seeds"]),
        (("--sweep=nowhere.py",), ["--sweep", "nowhere.py"]),
        ((f"--sweep={CONFIGS}/quickstart.py",), ["--sweep", "no field"]),
        ((f"--sweep={tmp_path}/reserved.py",), ["--sweep", "'runs'"]),
        ((f"--sweep={tmp_path}/no_pairs.py",), ["--sweep", "pairs"]),
    ):
        refuses(command(*words(sweep_file, "unread", tmp_path / "out", *more)), *expected)
    assert not (tmp_path / "out").exists()
