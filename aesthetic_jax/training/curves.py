"""Learning curves of runs as a picture."""

import json
from typing import Any

import numpy as np
from etils import epath

Log = list[dict[str, Any]]  # rows of a run's metrics.jsonl
_SMOOTHED = 5  # rows averaged into a drawn value


def read_log(run: Any) -> Log:
    """The rows of a run's metrics.jsonl; empty if there is no such file."""
    file = epath.Path(run) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def draw_curves(logs: dict[str, list[Log]], path: Any) -> None:
    """Draws loss of SFT, and exact match, reward and entropy of stage 2, over steps.

    Args:
        logs: for each method, the logs of its runs. Several runs are drawn as their mean, with the
            range as a band.
        path: path of the PNG.
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
        ("entropy", "stage 2: entropy, nats per token", stage2),
    ]
    panels = [panel for panel in panels if panel[2]]
    size = (4.2 * max(1, len(panels)), 3.4)
    figure, axes = pyplot.subplots(
        1, max(1, len(panels)), figsize=size, constrained_layout=True, squeeze=False
    )
    for axis, (field, title, methods) in zip(axes[0], panels, strict=False):
        for name, runs in methods.items():
            _draw_method(axis, name, [_curve(log, field) for log in runs])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(methods) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_method(axis: Any, name: str, curves: list[tuple[list[int], list[float]]]) -> None:
    steps = curves[0][0]
    values = np.array([curve[1][: len(steps)] for curve in curves])
    (line,) = axis.plot(steps, values.mean(0), label=name)
    if len(curves) > 1:
        low, high = values.min(0), values.max(0)
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _curve(log: Log, field: str) -> tuple[list[int], list[float]]:
    """Steps, and the mean of each value with the ones just before it."""
    rows = [row for row in log if row.get(field) is not None]
    values = [row[field] for row in rows]
    smooth = [float(np.mean(values[max(0, i - _SMOOTHED + 1) : i + 1])) for i in range(len(values))]
    return [row["step"] for row in rows], smooth
