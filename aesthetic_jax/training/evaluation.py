"""Evaluation: answers a split greedily and scores the answers.

A folder of results holds `evaluation.json` (the settings), `predictions.jsonl` and, written last,
`metrics.json`. For rendered scenes, its "facts" are the fact fidelity of the chains of thought. An
interrupted evaluation resumes; a finished one is left alone.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from aesthetic_jax.data.records import Record
from aesthetic_jax.data.scenes.facts_file import Scenes
from aesthetic_jax.models.internvl import Parameters
from aesthetic_jax.rl.fidelity import fact_fidelity
from aesthetic_jax.rl.metrics import summarize
from aesthetic_jax.rl.rewards import parse_answer
from aesthetic_jax.training.answering import (
    Answering,
    Row,
    answer_split,
    claim_folder,
    describe_samples,
    join_parts,
    remove_parts,
    write_json,
)
from aesthetic_jax.training.sampling import Sampler, sample_records

_OUTPUTS = ("predictions.jsonl", "metrics.json")
_FIELDS = ("id", "dimension", "completion", "predicted", "answer")  # of predictions.jsonl


def predict(
    sampler: Sampler, parameters: Parameters, records: Sequence[Record], ids: Sequence[str]
) -> list[Row]:
    """Predictions of a split in memory, in order, the same on every host.

    Args:
        sampler: greedy.
        ids: ids of the records to answer, from the first on.

    Returns:
        Rows of predictions.jsonl, with `num_options`.
    """
    batches = sample_records(sampler, parameters, records, ids, title="answering")
    return [_prediction(row) for batch in batches for row in batch]


def evaluate_split(
    work: Answering,
    parameters: Parameters,
    settings: dict[str, Any],
    should_stop: Callable[[], bool],
    scenes: Scenes | None = None,
) -> dict[str, Any] | None:
    """Answers a split into a folder and scores the answers.

    Args:
        work: with a greedy sampler.
        settings: everything that the answers depend on, such as the checkpoint; a folder with other
            settings is refused.
        should_stop: from `preemption_guard`.
        scenes: the facts of the samples' images, to score the chains of thought; None: no scores.

    Returns:
        The content of metrics.json; None if it stopped early; the same call then resumes.

    Raises:
        UserError: the folder holds the answers of other settings.
    """
    is_first = jax.process_index() == 0
    settings = settings | describe_samples(work.ids)
    if is_first:
        claim_folder(work.folder / "evaluation.json", settings, _OUTPUTS, "answered")
    metrics_file = work.folder / "metrics.json"
    if metrics_file.exists():
        if is_first:
            remove_parts(work.folder)
        return json.loads(metrics_file.read_text())
    answers: list[Row] = []
    completions: dict[str, str] = {}

    def collect(row: Row) -> None:
        answers.append({name: row[name] for name in row if name != "completion"})
        if scenes is not None:
            completions[row["id"]] = row["completion"]

    if not answer_split(work, parameters, _prediction, collect, should_stop):
        return None
    metrics = summarize_predictions(answers)
    if scenes is not None:
        metrics["facts"] = fact_fidelity(completions, scenes)
    if is_first:
        join_parts(work, "predictions.jsonl", _FIELDS)
        write_json(metrics_file, metrics)
        remove_parts(work.folder)
    return metrics


def summarize_predictions(predictions: Iterable[Row]) -> dict[str, Any]:
    """Scores of rows of `predict`, in the form of metrics.json."""
    rows = list(predictions)
    return summarize(
        [row["dimension"] for row in rows],
        [None if row["predicted"] is None else frozenset(row["predicted"]) for row in rows],
        [frozenset(row["answer"]) for row in rows],
        [row["num_options"] for row in rows],
    )


def _prediction(row: Row) -> Row:
    """A row of predictions.jsonl, with `num_options`, from one of `sample_records`."""
    (completion,) = row["completions"]
    predicted = parse_answer(completion, row["num_options"])
    return {
        "id": row["id"],
        "dimension": row["dimension"],
        "completion": completion,
        "predicted": None if predicted is None else sorted(predicted),
        "answer": row["answer"],
        "num_options": row["num_options"],
    }
