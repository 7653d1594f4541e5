"""The study's report: tables as text, study.json and curves.png."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.curves import draw_curves
from studylib.calibration import format_calibration, measure
from studylib.endpoints import ARMS, PRIMARY_ARMS, check_budget, compare_arms
from studylib.measures import MEASURES, Key, Run, read_arms, read_types
from studylib.pool import TYPES

EXACT = ("hard", "easy", "overall")
LETTERS = "letters_named_less_right"  # the only endpoint that isn't a share


def write_report(results: pathlib.Path) -> str:
    """Writes study.txt, study.json and curves.png of what is finished; returns the text.

    Args:
        results: folder of the study.

    Raises:
        UserError: no run is finished, or one has used another number of completions.
    """
    types = read_types(results / "pool")
    arms = read_arms(results, ARMS)
    if not arms:
        raise UserError(f"{results}: no run of the study is finished; start scripts/study.sh")
    check_budget(arms)
    calibration, comparisons = measure(results, "pool"), compare_arms(arms, types)
    described = {name: describe_arm(runs, types) for name, runs in arms.items()}
    text = "\n\n".join(
        [
            format_calibration(calibration),
            format_arms(described),
            format_primary(comparisons),
            format_secondary(comparisons),
        ]
    )
    content = {"calibration": calibration, "arms": described, "comparisons": comparisons}
    (results / "study.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    (results / "study.txt").write_text(text + "\n")
    logs = {name: [run.log for run in runs.values()] for name, runs in arms.items()}
    draw_curves(logs, results / "curves.png")
    return text


def describe_arm(runs: Mapping[Key, Run], types: Mapping[str, str]) -> dict[str, Any]:
    """An arm's own figures: means over its runs, of all and not only of complete pairs.

    Args:
        runs: the arm's finished runs.
        types: each test question's type.
    """
    every = list(runs.values())
    exact = [exact_by_type(run.rows, types) for run in every]
    means = {name: float(np.mean([run.measures[name] for run in every])) for name in MEASURES}
    return {
        "runs": [f"checkpoint {checkpoint}, seed {seed}" for checkpoint, seed in runs],
        "exact": {name: float(np.mean([entry[name] for entry in exact])) for name in EXACT},
        "measures": {name: x if np.isfinite(x) else None for name, x in means.items()},
        "visits": {name: float(np.mean([run.visits[name] for run in every])) for name in TYPES},
        "completions": sorted({run.completions for run in every}),
    }


def exact_by_type(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> dict[str, float]:
    """Share of exact answers on hard, easy and all questions."""
    right = np.array([row["predicted"] == row["answer"] for row in rows], float)
    names = np.array([types[row["id"]] for row in rows])
    shares = {name: float(right[names == name].mean()) for name in ("hard", "easy")}
    return shares | {"overall": float(right.mean())}


def format_arms(described: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the arms' own figures."""
    titles = [*(f"exact {x}, %" for x in EXACT), *(f"visits {x}, %" for x in TYPES), "completions"]
    lines = [f"{'arm':14}{'runs':>6}" + "".join(f"{title:>18}" for title in titles)]
    for name, arm in described.items():
        shares = [*(arm["exact"][x] for x in EXACT), *(arm["visits"][x] for x in TYPES)]
        cells = [f"{100 * share:.1f}" for share in shares]
        cells.append(
            " to ".join(
                f"{x:,}" for x in sorted({*arm["completions"][:1], *arm["completions"][-1:]})
            )
        )
        lines.append(f"{name:14}{len(arm['runs']):>6}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def format_primary(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the primary endpoint: stage 1, then stage 2."""
    titles = ("difference", "95 % interval", "90 % interval", "p", "p, Holm")
    heading = "".join(f"{title:>17}" for title in titles)
    lines = [f"{'hard questions, points':24}{'pairs':>10}{heading}  verdict"]
    for name, result in comparisons.items():
        entry = result["endpoints"]["hard"]
        adjusted = f"{result['p_adjusted']:.3f}" if name in PRIMARY_ARMS else "exploratory"
        cells = [
            f"{100 * entry['value']:+.1f}",
            _interval(entry, "low", "high"),
            _interval(entry, "low_90", "high_90"),
            f"{entry['p_value']:.3f}",
            adjusted,
        ]
        pairs = f"{result['pairs']} of {result['planned_pairs']}"
        row = "".join(f"{cell:>17}" for cell in cells)
        lines.append(f"  {name:22}{pairs:>10}{row}  {result['verdicts']['hard']}")
    return "\n".join(lines)


def format_secondary(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the secondary endpoints, with 95 % intervals."""
    names = ["overall", "easy", *MEASURES]
    heading = "".join(f"{name:>26}" for name in names)
    lines = [f"{'difference to uniform':24}{heading}  verdicts on overall, easy"]
    for arm, result in comparisons.items():
        cells = []
        for name in names:
            entry, scale = result["endpoints"][name], 1 if name == LETTERS else 100
            value = "-" if entry["value"] is None else f"{scale * entry['value']:+.2f}"
            cells.append(f"{value} {_interval(entry, 'low', 'high', scale)}")
        row = "".join(f"{cell:>26}" for cell in cells)
        verdicts = ", ".join(result["verdicts"][name] for name in ("overall", "easy"))
        lines.append(f"  {arm:22}{row}  {verdicts}")
    lines.append(f"In points; {LETTERS} in letters.")
    return "\n".join(lines)


def _interval(entry: Mapping[str, float | None], low: str, high: str, scale: float = 100) -> str:
    """The interval between two of a difference's numbers; "" where it is infinite."""
    bounds = [entry[low], entry[high]]
    numbers = [f"{scale * bound:+.2f}" for bound in bounds if bound is not None]
    return f"[{', '.join(numbers)}]" if len(numbers) == 2 else ""
