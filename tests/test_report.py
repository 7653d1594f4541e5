"""`aesthetic-jax report` on written predictions: paired differences, and what it refuses."""

import json

import pytest

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.training.comparison import compare_methods
from aesthetic_jax.training.evaluation import summarize_predictions


def write_results(folder, exact, first_id=0):
    """A method's results, with the right answer to the questions numbered in `exact`."""
    folder.mkdir(parents=True)
    rows = [
        {
            "id": f"{first_id + i:03d}",
            "dimension": DIMENSIONS[i % 4],
            "completion": "",
            "predicted": ["A"] if i in exact else None,
            "answer": ["A"],
        }
        for i in range(80)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = summarize_predictions(row | {"num_options": 4} for row in rows)
    (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def results(tmp_path):
    write_results(tmp_path / "sft", range(40))
    write_results(tmp_path / "grpo", {*range(40), *range(1, 80, 4)})
    write_results(tmp_path / "hcm_grpo", ())
    return tmp_path


def test_the_report_compares_with_the_first_method(command, results):
    result = command("report", f"--results={results}", "--methods=sft,grpo,hcm_grpo")
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((results / "summary.json").read_text())
    assert summary["methods"].keys() == {"sft", "grpo", "hcm_grpo"}
    differences = summary["differences"]
    assert [(x, y["against"]) for x, y in differences.items()] == [
        ("grpo", "sft"),
        ("hcm_grpo", "sft"),
    ]
    entry = differences["grpo"]["overall"]
    assert entry.keys() == {"value", "low", "high"}
    assert entry["value"] == pytest.approx(10 / 80)
    assert 0 < entry["low"] < entry["value"] < entry["high"]
    dimensions = differences["grpo"]["dimensions"]
    assert list(dimensions) == list(DIMENSIONS)
    assert dimensions[DIMENSIONS[1]]["value"] == 1 / 2
    assert dimensions[DIMENSIONS[0]] == {"value": 0, "low": 0, "high": 0}
    block = result.stdout.split("difference to sft, points\n")[1].splitlines()
    assert [line.split()[0] for line in block] == ["grpo", "hcm_grpo"]
    assert block[0].split()[-3] == "+12.5"
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_other_questions_are_refused(command, results, refuses):
    write_results(results / "other", range(80), first_id=1)
    words = ("report", f"--results={results}", "--methods=sft,grpo,other")
    refuses(command(*words), "other/predictions.jsonl", "question", "same split")
    (results / "grpo" / "predictions.jsonl").unlink()
    refuses(command(*words), "grpo/predictions.jsonl", "is missing", "evaluate --out")
    (results / "grpo" / "predictions.jsonl").write_text("{")
    refuses(command(*words), "grpo/predictions.jsonl", "JSON")
    assert not (results / "summary.json").exists()


def test_runs_are_paired_by_place(tmp_path):
    for seed in range(3):
        write_results(tmp_path / f"{seed}" / "start", range(20 + seed), 100 * seed)
        write_results(tmp_path / f"{seed}" / "grpo", range(24 + seed), 100 * seed)
    folders = {x: [tmp_path / f"{seed}" / x for seed in range(3)] for x in ("start", "grpo")}
    entry = compare_methods(folders, "start")["grpo"]["overall"]
    assert entry["value"] == pytest.approx(4 / 80)
    folders["grpo"].reverse()
    with pytest.raises(Exception, match=r"has no pair in .*start; evaluate both"):
        compare_methods(folders, "start")
