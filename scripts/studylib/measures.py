"""Reads a finished run of the study: its answers, measures and visits by type."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Int

from aesthetic_jax.checkpoints.runs import locate
from aesthetic_jax.data.manifest import read_manifest
from aesthetic_jax.training.comparison import Row, read_predictions
from aesthetic_jax.training.curves import Log, read_log
from studylib.pool import TYPES

CHECKPOINTS = (0, 1)
MEASURES = ("training_exact", "hit_rate", "false_alarm_rate", "letters_named_less_right",
            "mixed_groups")  # fmt: skip

Key = tuple[int, int]  # checkpoint and seed


class Run(NamedTuple):
    """A finished run."""

    rows: list[Row]  # of predictions.jsonl on the test
    measures: dict[str, float]  # by name in MEASURES; NaN where there is none
    visits: dict[str, float]  # share of training's visits by type
    completions: int  # all that the run sampled, mining included
    log: Log


def read_types(folder: pathlib.Path) -> dict[str, str]:
    """{id: type} of the questions in a folder that `write_questions` wrote."""
    return json.loads((folder / "types.json").read_text())


def train_types(folder: pathlib.Path) -> list[str]:
    """Types of the train split's questions in the order of records and difficulty tables."""
    types = read_types(folder)
    samples = read_manifest(str(folder / "manifest.jsonl"), check_files=False)
    return [types[sample.id] for sample in samples if sample.split == "train"]


def read_arms(results: pathlib.Path, names: Sequence[str]) -> dict[str, dict[Key, Run]]:
    """The finished runs of each arm that has any, by checkpoint and seed.

    Args:
        results: folder of the study.
        names: names of arms.
    """
    order = train_types(results / "pool")
    arms = {}
    for name in names:
        runs = {}
        for checkpoint in CHECKPOINTS:
            for seed in sorted((results / f"sweep{checkpoint}").glob("seed*")):
                if (seed / name / "metrics.json").exists():  # written last
                    number = int(seed.name.removeprefix("seed"))
                    runs[checkpoint, number] = _read_run(seed, name, order)
        if runs:
            arms[name] = runs
    return arms


def _read_run(seed: pathlib.Path, name: str, order: Sequence[str]) -> Run:
    """One finished run.

    Args:
        seed: folder of a seed in a sweep's results.
        name: the arm.
        order: what `train_types` returned.
    """
    folder = seed / "runs" / name
    metrics = json.loads((seed / name / "metrics.json").read_text())
    log = read_log(folder)
    config = json.loads((folder / "config.json").read_text())["config"]
    table = _final_table(folder)
    settings = config["hard_cases"]
    mined = settings["mine_rollouts"] if settings["mode"] == "two_stage" else 0
    visits = (table["count"] - mined) // config["grpo"]["num_generations"]
    return Run(
        rows=read_predictions(seed / name),
        measures=run_measures(metrics, log, table),
        visits=visits_by_type(visits, order),
        completions=int(table["count"].sum()),
        log=log,
    )


def _final_table(run: pathlib.Path) -> dict[str, Any]:
    """The difficulty table of a run's last checkpoint; its fields are those of DifficultyTable."""
    folder, step = locate(str(run))
    progress = ocp.StandardCheckpointer().restore(folder / "checkpoints" / str(step) / "progress")
    return progress[0]


def run_measures(
    metrics: Mapping[str, Any], log: Sequence[Mapping[str, Any]], table: Mapping[str, Any]
) -> dict[str, float]:
    """The run's MEASURES.

    Args:
        metrics: content of metrics.json.
        log: rows of metrics.jsonl.
        table: the final difficulty table.

    Returns:
        training_exact: share of exact answers among all completions sampled, mining included.
        hit_rate, false_alarm_rate: means over the facts, each fact counted once.
        letters_named_less_right: in letters.
        mixed_groups: mean over the steps.
    """
    facts = list(metrics.get("facts", {}).values())
    letters = metrics["overall"]["letters_named_less_right"]["value"]
    return {
        "training_exact": float(np.sum(table["num_exact"]) / np.sum(table["count"])),
        "hit_rate": _mean([fact["hit_rate"] for fact in facts]),
        "false_alarm_rate": _mean([fact["false_alarm_rate"] for fact in facts]),
        "letters_named_less_right": _mean([letters]),
        "mixed_groups": _mean([row["groups/mixed"] for row in log]),
    }


def visits_by_type(visits: Int[np.ndarray, " n"], order: Sequence[str]) -> dict[str, float]:
    """Share of the visits that each type got.

    Args:
        visits: of each sample.
        order: each sample's type.
    """
    names = np.array(order)
    return {name: float(visits[names == name].sum() / visits.sum()) for name in TYPES}


def _mean(values: Sequence[float | None]) -> float:
    """Mean of the values that are there; NaN if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")
