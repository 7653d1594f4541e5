"""How often the SFT models, from which stage 2 starts, solve each type of question."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.training.comparison import read_predictions
from studylib.measures import CHECKPOINTS, read_types

SOLVED = (0.25, 0.55)  # intended share of exact answers to hard questions, in every dimension

Shares = dict[str, dict[str, dict[str, float]]]


def solved_shares(answers: Iterable[tuple[str, str, float]]) -> Shares:
    """Share of exact answers by type and dimension.

    Args:
        answers: type, dimension, and share of exact answers of each question.

    Returns:
        {type: {dimension or "overall": {"exact", "num"}}}; num counts questions.
    """
    groups: dict[str, dict[str, list[float]]] = {}
    for kind, dimension, exact in answers:
        for column in (dimension, "overall"):
            groups.setdefault(kind, {}).setdefault(column, []).append(exact)
    return {
        kind: {
            column: {"exact": sum(values) / len(values), "num": len(values)}
            for column, values in sorted(columns.items())
        }
        for kind, columns in sorted(groups.items())
    }


def measure(results: pathlib.Path, questions: str) -> dict[str, dict[str, Shares]]:
    """Shares that the checkpoints solve of a question set, as far as it has been answered.

    Args:
        results: folder of the study.
        questions: name of the set, "pool" or "probe".

    Returns:
        {checkpoint: {"sampled": shares of the train split, with answers sampled as in training;
        "greedy": shares of the pool's test split, with greedy answers}}.
    """
    types = read_types(results / questions)
    measured: dict[str, dict[str, Shares]] = {}
    for checkpoint in CHECKPOINTS:
        folder, found = results / f"checkpoint{checkpoint}", {}
        if (folder / questions / "table.npz").exists():  # written last
            lines = (folder / questions / "completions.jsonl").read_text().splitlines()
            rows = map(json.loads, lines)
            found["sampled"] = solved_shares(
                (types[row["id"]], row["dimension"], row["exact"]) for row in rows
            )
        if questions == "pool" and (folder / "start" / "metrics.json").exists():
            found["greedy"] = solved_shares(
                (types[row["id"]], row["dimension"], float(row["predicted"] == row["answer"]))
                for row in read_predictions(folder / "start")
            )
        measured[f"checkpoint{checkpoint}"] = found
    return measured


def outside(measured: Mapping[str, Mapping[str, Shares]]) -> list[str]:
    """Checkpoints and dimensions whose sampled answers solve hard questions outside SOLVED."""
    low, high = SOLVED
    return [
        f"{checkpoint}, {column}: {entry['exact']:.0%}"
        for checkpoint, found in measured.items()
        for column, entry in found.get("sampled", {}).get("hard", {}).items()
        if not low <= entry["exact"] <= high
    ]


def format_calibration(measured: Mapping[str, Mapping[str, Shares]]) -> str:
    """A table of the shares in percent, and where hard questions miss SOLVED."""
    columns = [*DIMENSIONS, "overall"]
    names = "".join(f"{column.split('_')[0]:>12}" for column in columns)
    lines = [f"{'solved before stage 2, %':34}{names}{'questions':>12}"]
    for checkpoint, found in measured.items():
        for manner, shares in found.items():
            for kind, entries in shares.items():
                cells = [_cell(entries.get(column)) for column in columns]
                label = f"  {checkpoint}, {manner}, {kind}"
                lines.append(f"{label:34}{''.join(cells)}{entries['overall']['num']:>12}")
    if off := outside(measured):
        low, high = SOLVED
        lines.append(f"hard questions solved outside {low:.0%} to {high:.0%}: {'; '.join(off)}")
    return "\n".join(lines)


def _cell(entry: Mapping[str, Any] | None) -> str:
    return f"{100 * entry['exact']:>12.1f}" if entry else " " * 12
