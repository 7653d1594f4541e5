"""Learning curves as a picture."""

import json
from typing import Any

import numpy as np
from etils import epath


def read_log(run: Any) -> list[dict]:
    """The rows of a run's metrics.jsonl; none where there is none."""
    file = epath.Path(run) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def draw_curves(logs: dict[str, list[list[dict]]], path: Any) -> None:
    """Loss of SFT, and exact match, reward and entropy of the methods of stage 2, over steps.

    Args:
        logs: of each method, the logs of its runs; of several the mean is drawn, and the range as a band.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stage2 = {name: runs for name, runs in logs.items() if runs[0] and "exact" in runs[0][-1]}
    stage1 = {name: runs for name, runs in logs.items() if runs[0] and name not in stage2}
    panels = [
        ("loss", "stage 1: loss", stage1),
        ("exact", "stage 2: exact match of sampled answers", stage2),
        ("reward", "stage 2: reward", stage2),
        ("entropy", "stage 2: entropy, nats a token", stage2),
    ]
    panels = [panel for panel in panels if panel[2]]
    figure, axes = pyplot.subplots(1, max(1, len(panels)), figsize=(4.2 * len(panels), 3.4), constrained_layout=True)
    for axis, (field, title, shown) in zip(np.atleast_1d(axes), panels, strict=False):
        for name, runs in shown.items():
            curves = [_curve(log, field) for log in runs]
            steps = curves[0][0]
            values = np.array([curve[1][: len(steps)] for curve in curves])
            (line,) = axis.plot(steps, values.mean(0), label=name)
            if len(runs) > 1:
                axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(shown) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _curve(log: list[dict], field: str, width: int = 5) -> tuple[list[int], list[float]]:
    """Steps, and the mean of each value and those up to `width` - 1 before it."""
    rows = [row for row in log if row.get(field) is not None]
    values = [row[field] for row in rows]
    smooth = [float(np.mean(values[max(0, i - width + 1) : i + 1])) for i in range(len(values))]
    return [row["step"] for row in rows], smooth
