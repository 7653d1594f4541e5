"""Evaluation with a sampler of known answers: its files, stopping, resuming, refusals."""

import json

import numpy as np
import pytest
from etils import epath

from aesthetic_jax import evaluate as evaluate_command
from aesthetic_jax.data.manifest import Sample, write_manifest
from aesthetic_jax.data.prompts import completion_text
from aesthetic_jax.data.records import Record
from aesthetic_jax.data.scenes.facts_file import ImageFacts
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import answering, evaluation, judge, sampling
from aesthetic_jax.training.answering import Answering
from aesthetic_jax.training.config import base_config
from aesthetic_jax.training.mesh import make_mesh
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

    def sample_records(sampler, parameters, records, ids, *, first_batch=0, **_):
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

    def run(folder, stop_after=None, settings=SETTINGS, ids=None, scenes=None):
        answered.clear()
        sampler = Sampler(None, None, None, 4, 1, None)
        names = [record.id for record in RECORDS] if ids is None else ids
        work = Answering(sampler, RECORDS, names, epath.Path(folder), "answering")
        metrics = evaluation.evaluate_split(
            work, {}, settings, lambda: len(answered) == stop_after, scenes
        )
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


def test_scenes_add_the_fidelity_of_the_chains(evaluate, tmp_path):
    shown = ImageFacts("jar", "red", "blue", "green", "left", frozenset({"bent"}))
    scenes = {record.id: {"original": ImageFacts(light="left"), "A": shown} for record in RECORDS}
    plain, _ = evaluate(tmp_path / "plain")
    evaluate(tmp_path / "out", 1, scenes=scenes)
    metrics, _ = evaluate(tmp_path / "out", scenes=scenes)  # the first batch is read back
    assert "facts" not in plain
    missed = {"hit_rate": 0.0, "false_alarm_rate": 0.0, "num": 10}
    assert metrics == plain | {
        "facts": dict.fromkeys(("kind", "body", "label", "cap"), missed)
        | {"light": missed | {"num": 20}, "bent": missed | {"false_alarm_rate": None}}
    }
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


class Listed(list):
    """Records with their ids, as `open_judge` opens them."""

    def ids(self):
        return [record.id for record in self]


@pytest.fixture
def command(evaluate, monkeypatch, tmp_path):
    """The command without a model, on data whose manifest stands in tmp_path."""
    config = base_config()
    config.data.manifest = str(tmp_path / "manifest.jsonl")
    opened = judge.Judge(None, {}, None, make_mesh(config.mesh), Listed(RECORDS), "a model")
    monkeypatch.setattr(judge, "open_judge", lambda *_: opened)
    sampler = Sampler(None, None, None, 4, 1, None)
    monkeypatch.setattr(sampling, "make_sampler", lambda *_, **__: sampler)
    return lambda out, limit=0: evaluate_command._evaluate(config, "model", str(out), "test", limit)


def test_the_command_reads_scenes_beside_the_data(command, tmp_path, capsys):
    assert command(tmp_path / "plain")
    assert "facts" not in capsys.readouterr().out
    image = {"kind": "jar", "body": None, "label": None, "cap": None, "light": "left", "flaws": []}
    images = dict.fromkeys(("original", *"ABCD"), image)
    rows = [json.dumps({"id": record.id, "images": images}) + "\n" for record in RECORDS]
    (tmp_path / "scenes.jsonl").write_text("".join(rows))
    assert command(tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    missed = {"hit_rate": 0.0, "false_alarm_rate": 0.0, "num": 50}
    assert metrics.pop("facts") == {"kind": missed, "light": missed}
    assert metrics == json.loads((tmp_path / "plain" / "metrics.json").read_text())
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[-3:-1]] == [
        ["kind", "0.0", "0.0", "50"],
        ["light", "0.0", "0.0", "50"],
    ]
    assert printed[-1] == str(tmp_path / "out")

    (tmp_path / "scenes.jsonl").write_text("".join(rows[:-1]))
    with pytest.raises(UserError, match=r"scenes\.jsonl: lacks 1 of 10 samples, the first is 09;"):
        command(tmp_path / "short")
    assert not (tmp_path / "short").exists()
    assert command(tmp_path / "limited", limit=9)


def test_descriptions_are_refused(tmp_path):
    (tmp_path / "o.jpg").write_bytes(b"")
    config = base_config()
    config.data.manifest = str(tmp_path / "manifest.jsonl")
    sample = Sample("a", "test", DIMENSION, "o.jpg", (), (), "A red jar.", "What is it?")
    write_manifest([sample], config.data.manifest)
    said = "the test split has descriptions, without candidates; only samples with an answer"
    with pytest.raises(UserError, match=said):
        judge.open_judge(config, str(tmp_path / "run"), "test", "eval_batch_size")


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
