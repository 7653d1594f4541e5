"""Evaluation metrics per dimension and overall, with bootstrap intervals and chance rows."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from aesthetic_jax.data.answers import format_answer, option_letters
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.rl.rewards import dpa_reward

METRICS = ("exact", "dpa", "jaccard", "per_option", "answered", "letters_named_less_right")
_RESAMPLES = 1000
_LABEL, _CELL = 24, 19  # widths of the columns of a printed table

Answer = frozenset[str] | None


def summarize(
    dimensions: Sequence[str],
    predicted: Sequence[Answer],
    gold: Sequence[frozenset[str]],
    num_options: Sequence[int],
) -> dict[str, Any]:
    """Scores in the form of metrics.json.

    Chance rows: `uniform` draws any subset of the options; `non_empty` any but the empty one (the
    paper's reading of random guessing); `best_constant` always gives the answer that is right most
    often on these questions, listed as `answer`.

    `letters_named_less_right` is the mean, over the answered questions, of the number of letters
    named less the number of right letters. It is negative for a model that games the reward
    `subset` by naming only its surest letters.

    Returns:
        {"num_samples", "overall": {metric: {"value", "low", "high"}}, "dimensions": {name: as
        overall}, "chance": {name: as overall}}: shares in [0, 1], or letters; 95 % intervals over
        samples. Numbers of `letters_named_less_right` are None if no question was answered.
    """
    scores = np.array([_score(*x) for x in zip(predicted, gold, num_options, strict=True)])
    names = np.array(dimensions)
    shared_options = _subsets(min(num_options))
    best = max(shared_options, key=lambda answer: sum(answer == x for x in gold))

    def chance(answers: Callable[[int], Sequence[frozenset[str]]]) -> dict[str, Any]:
        return _intervals(_expected_scores(answers, gold, num_options))

    return {
        "num_samples": len(scores),
        "overall": _intervals(scores),
        "dimensions": {
            name: _intervals(scores[names == name]) for name in DIMENSIONS if (names == name).any()
        },
        "chance": {
            "uniform": chance(_subsets),
            "non_empty": chance(lambda options: _subsets(options)[1:]),
            "best_constant": chance(lambda _: [best]) | {"answer": sorted(best)},
        },
    }


def format_table(methods: dict[str, dict[str, Any]]) -> str:
    """A table of exact match, DPA and letters named: methods, then chance rows.

    Exact match and DPA are in percent; all have 95 % intervals.

    Args:
        methods: what `summarize` returned for each.
    """
    first = next(iter(methods.values()))
    dimensions = list(first["dimensions"])
    lines = [_line("", [*_short_names(dimensions), "overall"])]
    for metric, title, cell in (
        ("exact", "exact match, %", _cell),
        ("dpa", "partial credit (DPA), %", _cell),
        ("letters_named_less_right", "letters named less letters right", _letters_cell),
    ):
        lines.append(title)
        for name, result in methods.items():
            entries = [result["dimensions"].get(x, {}).get(metric) for x in dimensions]
            cells = [cell(x) if x else "" for x in [*entries, result["overall"][metric]]]
            lines.append(_line(f"  {name}", cells))
        for name, result in first["chance"].items():
            answer = f" ({format_answer(result['answer'])})" if "answer" in result else ""
            cells = [""] * len(dimensions) + [cell(result[metric])]
            lines.append(_line(f"  {name}{answer}", cells))
    return "\n".join(lines)


def format_seeds(methods: dict[str, list[dict[str, Any]]], hard: dict[str, list[float]]) -> str:
    """A table of exact match and mean DPA in percent, as mean [lowest, highest] over seeds.

    Args:
        methods: for each, what `summarize` returned for every seed.
        hard: for each, the share of exact answers on every seed's hard quarter; {}: no such column.
    """
    first = next(iter(methods.values()))
    dimensions = list(first[0]["dimensions"])
    titles = [*_short_names(dimensions), "overall", *(["hard quarter"] if hard else []), "DPA"]
    lines = [_line("exact match, %", titles)]
    for name, seeds in methods.items():
        columns = [[seed["dimensions"][x]["exact"]["value"] for seed in seeds] for x in dimensions]
        columns += [[seed["overall"]["exact"]["value"] for seed in seeds]]
        columns += [hard[name]] if hard else []
        columns += [[seed["overall"]["dpa"]["value"] for seed in seeds]]
        lines.append(_line(name, list(map(_range_cell, columns))))
    chance = [max(x["exact"]["value"] for x in seed["chance"].values()) for seed in first]
    lines.append(_line("best constant", [""] * len(dimensions) + [_range_cell(chance)]))
    return "\n".join(lines)


def format_differences(differences: dict[str, dict[str, Any]], dimensions: Sequence[str]) -> str:
    """Rows to print below another table: paired differences in exact match, in percentage points.

    Args:
        differences: what `compare_methods` returned for methods compared with the same one.
        dimensions: the columns before "overall".
    """
    (against,) = {result["against"] for result in differences.values()}
    lines = [f"difference to {against}, points"]
    for name, result in differences.items():
        entries = [*map(result["dimensions"].get, dimensions), result["overall"]]
        lines.append(_line(f"  {name}", [_points_cell(x) if x else "" for x in entries]))
    return "\n".join(lines)


def _score(predicted: Answer, gold: frozenset[str], options: int) -> list[float]:
    """One answer's METRICS; NaN for a metric that doesn't count it."""
    variants = ("exact", "subset", "jaccard", "per_option")
    credits = [dpa_reward(predicted, gold, options, variant) for variant in variants]
    if predicted is None:
        return [*credits, 0.0, np.nan]
    return [*credits, 1.0, float(len(predicted) - len(gold))]


def _intervals(scores: Float[np.ndarray, "n 6"]) -> dict[str, dict[str, float | None]]:
    """Mean of each of METRICS with its 95 % percentile bootstrap interval over samples."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=_RESAMPLES)
    entries = {}
    for name, column in zip(METRICS, scores.T, strict=True):
        counted = ~np.isnan(column)
        if not counted.any():
            entries[name] = dict.fromkeys(("value", "low", "high"))
            continue
        weights = counts[:, counted]
        weights = weights[weights.any(axis=1)]  # a resample may hold no sample that counts
        means = weights @ column[counted] / weights.sum(1)
        low, high = np.percentile(means, [2.5, 97.5])
        value = column[counted].mean()
        entries[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return entries


def _subsets(options: int) -> list[frozenset[str]]:
    """All answers to a question of so many options, the empty one first."""
    letters = option_letters(options)
    return [frozenset(x) for size in range(options + 1) for x in combinations(letters, size)]


def _expected_scores(
    answers: Callable[[int], Sequence[frozenset[str]]],
    gold: Sequence[frozenset[str]],
    num_options: Sequence[int],
) -> Float[np.ndarray, "n 6"]:
    """Expected METRICS of drawing uniformly from `answers(number of options)`."""
    questions = list(zip(gold, num_options, strict=True))
    expected = {
        question: np.mean([_score(answer, *question) for answer in answers(question[1])], axis=0)
        for question in set(questions)
    }
    return np.array([expected[question] for question in questions])


def _short_names(dimensions: Sequence[str]) -> list[str]:
    return [name.split("_")[0] for name in dimensions]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"{label:{_LABEL}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)


def _cell(entry: dict[str, float]) -> str:
    return f"{100 * entry['value']:.1f} [{100 * entry['low']:.0f}, {100 * entry['high']:.0f}]"


def _letters_cell(entry: dict[str, float | None]) -> str:
    if entry["value"] is None:
        return "-"
    return f"{entry['value']:+.2f} [{entry['low']:+.1f}, {entry['high']:+.1f}]"


def _points_cell(entry: dict[str, float]) -> str:
    low, high = (_bound(100 * entry[name]) for name in ("low", "high"))
    return f"{100 * entry['value']:+.1f} [{low}, {high}]"


def _bound(points: float) -> str:
    """A bound with one decimal; without, where it would not fit the column."""
    return f"{points:+.1f}" if abs(points) < 9.95 else f"{points:+.0f}"


def _range_cell(values: Sequence[float]) -> str:
    return f"{100 * np.mean(values):.1f} [{100 * min(values):.0f}, {100 * max(values):.0f}]"
