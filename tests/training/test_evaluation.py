"""Evaluation with a sampler of known answers: its files, stopping, resuming, refusals."""

import json

import numpy as np
import pytest
from etils import epath

from aesthetic_jax.data.prompts import completion_text
from aesthetic_jax.data.records import Record
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import answering, evaluation
from aesthetic_jax.training.answering import Answering
from aesthetic_jax.training.sampling import Sampler

DIMENSION = "physical_shadow"
RECORDS = [
    Record(f"{i:02d}", DIMENSION, (), frozenset("AC" if i % 2 else "B"), 4, None, None)
    for i in range(10)
]
SETTINGS = {"model": "a model"}


@pytest.fixture
def evaluate(monkeypatch):
    """Evaluates ten records in batches of four; every third answer doesn't parse."""
    answered = []

    def sample_records(sampler, parameters, records, ids, *, first_batch=0, title=""):
        for start in range(first_batch * sampler.batch_size, len(ids), sampler.batch_size):
            answered.append(start // sampler.batch_size)
            yield [
                {
                    "id": record.id,
                    "dimension": record.dimension,
                    "answer": sorted(record.answer),
                    "num_options": record.num_options,
                    "completions": [
                        "no tags" if int(record.id) % 3 == 0 else completion_text("so", "B")
                    ],
                }
                for record in records[start : start + sampler.batch_size]
                if record.id in ids
            ]

    monkeypatch.setattr(answering, "sample_records", sample_records)
    monkeypatch.setattr(evaluation, "sample_records", sample_records)

    def run(folder, stop_after=None, settings=SETTINGS, ids=None):
        answered.clear()
        sampler = Sampler(None, None, None, 4, 1, None)
        names = [record.id for record in RECORDS] if ids is None else ids
        work = Answering(sampler, RECORDS, names, epath.Path(folder), "answering")
        metrics = evaluation.evaluate_split(work, {}, settings, lambda: len(answered) == stop_after)
        return metrics, list(answered)

    return run


def test_what_is_written(evaluate, tmp_path):
    metrics, batches = evaluate(tmp_path / "out")
    assert batches == [0, 1, 2]
    rows = [json.loads(x) for x in (tmp_path / "out" / "predictions.jsonl").open()]
    assert [row["id"] for row in rows] == [record.id for record in RECORDS]
    assert all(
        list(row) == ["id", "dimension", "completion", "predicted", "answer"] for row in rows
    )
    assert rows[0]["predicted"] is None
    assert (rows[1]["predicted"], rows[1]["answer"]) == (["B"], ["A", "C"])
    assert metrics["num_samples"] == 10
    np.testing.assert_allclose(metrics["overall"]["answered"]["value"], 0.6)
    np.testing.assert_allclose(metrics["overall"]["exact"]["value"], 0.3)
    names = {"evaluation.json", "metrics.json", "predictions.jsonl"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_evaluation_resumes(evaluate, tmp_path, stop_after):
    evaluate(tmp_path / "whole")
    metrics, batches = evaluate(tmp_path / "out", stop_after)
    assert metrics is None
    assert batches == list(range(stop_after))
    assert not (tmp_path / "out" / "metrics.json").exists()
    _, batches = evaluate(tmp_path / "out")
    assert batches == list(range(stop_after, 3))
    for name in ("metrics.json", "predictions.jsonl", "evaluation.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_evaluation_is_left_alone(evaluate, tmp_path):
    metrics, _ = evaluate(tmp_path / "out")
    again, batches = evaluate(tmp_path / "out")
    assert (again, batches) == (metrics, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"model": "another"}}, "answered with model 'a model', not 'another'"),
        ({"ids": ["00", "01"]}, "answered with samples 10, not 2"),
    ],
)
def test_other_settings_are_refused(evaluate, tmp_path, changes, words):
    evaluate(tmp_path / "out")
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    with pytest.raises(UserError, match=words):
        evaluate(tmp_path / "out", **changes)
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


def test_results_of_unknown_settings_are_not_overwritten(evaluate, tmp_path):
    (tmp_path / "predictions.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match=r"predictions\.jsonl: exists already"):
        evaluate(tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == "mine\n"
