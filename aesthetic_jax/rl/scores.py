"""How good a set of answers is, per dimension and overall, with bootstrap intervals and what guessing would score."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.rl.rewards import LETTERS, dpa_reward, format_answer

METRICS = ("exact", "dpa", "jaccard", "per_option", "answered")
_RESAMPLES = 1000

Answer = frozenset[str] | None


def _row(predicted: Answer, gold: frozenset[str], options: int) -> list[float]:
    variants = ("exact", "subset", "jaccard", "per_option")
    return [dpa_reward(predicted, gold, options, variant) for variant in variants] + [float(predicted is not None)]


def _interval(rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean of each column of [n, 5] with its 95 % percentile bootstrap interval over rows."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=_RESAMPLES)
    low, high = np.percentile(counts @ rows / len(rows), [2.5, 97.5], axis=0)
    return {
        name: {"value": float(value), "low": float(at), "high": float(to)}
        for name, value, at, to in zip(METRICS, rows.mean(0), low, high, strict=True)
    }


def _subsets(options: int) -> list[frozenset[str]]:
    letters = LETTERS[:options]
    return [frozenset(x) for size in range(options + 1) for x in combinations(letters, size)]


def _expected(answers: Callable[[int], Sequence[frozenset[str]]], gold, options) -> np.ndarray:
    """Expected scores of drawing uniformly from `answers(number of options)`; [n, 5]."""
    known = {}
    for key in set(zip(gold, options, strict=True)):
        known[key] = np.mean([_row(answer, *key) for answer in answers(key[1])], axis=0)
    return np.array([known[key] for key in zip(gold, options, strict=True)])


def summarize(
    dimensions: Sequence[str],
    predicted: Sequence[Answer],
    gold: Sequence[frozenset[str]],
    num_options: Sequence[int],
) -> dict[str, Any]:
    """Scores in the form of metrics.json.

    Chance rows: `uniform` draws any subset of the options, `non_empty` any but the empty one (the paper's reading of
    random guessing), `best_constant` gives the one answer that is right most often on these very questions.

    Returns:
        {"num_samples", "overall": {metric: {"value", "low", "high"}}, "dimensions": {name: the same}, "chance": {name: the
        same}}; shares in [0, 1], 95 % intervals over samples.
    """
    rows = np.array([_row(*x) for x in zip(predicted, gold, num_options, strict=True)])
    names = np.array(dimensions)
    constants = _subsets(min(num_options))
    best = max(constants, key=lambda answer: sum(answer == x for x in gold))
    chance = {
        "uniform": _expected(_subsets, gold, num_options),
        "non_empty": _expected(lambda n: _subsets(n)[1:], gold, num_options),
        f"best_constant ({format_answer(best)})": _expected(lambda _: [best], gold, num_options),
    }
    return {
        "num_samples": len(rows),
        "overall": _interval(rows),
        "dimensions": {name: _interval(rows[names == name]) for name in DIMENSIONS if (names == name).any()},
        "chance": {name: _interval(expected) for name, expected in chance.items()},
    }


def format_table(methods: dict[str, dict[str, Any]]) -> str:
    """A table of exact match and DPA credit in percent, with 95 % intervals: methods, then random guessing."""
    first = next(iter(methods.values()))
    columns = [*first["dimensions"], "overall"]
    titles = [name.split("_")[0] for name in columns]
    lines = [f"{'':24}" + "".join(f"{title:>18}" for title in titles)]

    def cell(entry: dict[str, float]) -> str:
        return f"{100 * entry['value']:.1f} [{100 * entry['low']:.0f}, {100 * entry['high']:.0f}]"

    def line(label: str, entries: Sequence[dict[str, float] | None]) -> str:
        return f"{label:24}" + "".join(f"{cell(entry) if entry else '':>18}" for entry in entries)

    for metric in ("exact", "dpa"):
        lines.append(f"{metric} match, %" if metric == "exact" else "partial credit (DPA), %")
        for name, result in methods.items():
            entries = [result["dimensions"].get(column, {}).get(metric) for column in columns[:-1]]
            lines.append(line(f"  {name}", [*entries, result["overall"][metric]]))
        for name, result in first["chance"].items():
            lines.append(line(f"  {name}", [None] * (len(columns) - 1) + [result[metric]]))
    return "\n".join(lines)


def format_seeds(methods: dict[str, list[dict[str, Any]]], hard: dict[str, list[float]]) -> str:
    """A table of exact match in percent as mean [lowest, highest] over seeds, and the mean of partial credit.

    Args:
        methods: of each, `summarize` of every seed.
        hard: of each, the share of exact answers on every seed's hard quarter.
    """
    dimensions = list(next(iter(methods.values()))[0]["dimensions"])
    titles = [*(name.split("_")[0] for name in dimensions), "overall", "hard quarter", "DPA"]
    lines = [f"{'exact match, %':24}" + "".join(f"{title:>18}" for title in titles)]

    def cell(values: Sequence[float]) -> str:
        return f"{100 * np.mean(values):.1f} [{100 * min(values):.0f}, {100 * max(values):.0f}]"

    for name, seeds in methods.items():
        columns = [[seed["dimensions"][x]["exact"]["value"] for seed in seeds] for x in dimensions]
        columns += [[seed["overall"]["exact"]["value"] for seed in seeds], hard[name]]
        columns += [[seed["overall"]["dpa"]["value"] for seed in seeds]]
        lines.append(f"{name:24}" + "".join(f"{cell(column):>18}" for column in columns))
    chance = [max(x["exact"]["value"] for x in seed["chance"].values()) for seed in next(iter(methods.values()))]
    blank = " " * 18 * len(dimensions)
    lines.append(f"{'best constant':24}{blank}{cell(chance):>18}")
    return "\n".join(lines)
