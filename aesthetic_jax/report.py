"""Lays methods side by side: summary.json, a table, and the learning curves as curves.png.

aesthetic-jax report --results=DIR --methods=sft,grpo: reads DIR/METHOD/metrics.json (of `evaluate`) and
DIR/runs/METHOD/metrics.jsonl (of `train`), and writes into DIR.
"""

import json

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("results", None, "folder with METHOD/metrics.json and runs/METHOD", flag_values=FLAGS)
flags.DEFINE_list("methods", None, "methods, in the order of the table", flag_values=FLAGS)


def _read_json(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; run aesthetic-jax evaluate --out={path.parent} first") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); run aesthetic-jax evaluate again") from None


def _read_log(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _smooth(values: list[float], width: int = 5) -> list[float]:
    """Mean of each value and those up to `width` - 1 before it."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / (i + 1 - max(0, i - width + 1)) for i in range(len(values))]


def draw_curves(logs: dict[str, list[dict]], path) -> None:
    """Loss of SFT, and reward, exact match and entropy of the methods of stage 2, over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        ("loss", "stage 1: loss", {name: log for name, log in logs.items() if log and "exact" not in log[-1]}),
        *(
            (field, f"stage 2: {title}", {name: log for name, log in logs.items() if log and "exact" in log[-1]})
            for field, title in (
                ("exact", "exact match of sampled answers"),
                ("reward", "reward"),
                ("entropy", "entropy, nats a token"),
            )
        ),
    ]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.4), constrained_layout=True)
    for axis, (field, title, shown) in zip(axes, panels, strict=True):
        for name, log in shown.items():
            rows = [row for row in log if row.get(field) is not None]
            axis.plot([row["step"] for row in rows], _smooth([row[field] for row in rows]), label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if len(shown) > 1:
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    results, methods = require(arguments, "results"), require(arguments, "methods")

    import pathlib

    from aesthetic_jax.rl.scores import format_table

    folder = pathlib.Path(results)
    metrics = {method: _read_json(folder / method / "metrics.json") for method in methods}
    draw_curves({name: _read_log(folder / "runs" / name / "metrics.jsonl") for name in methods}, folder / "curves.png")
    table = format_table(metrics)
    (folder / "table.txt").write_text(table + "\n")
    (folder / "summary.json").write_text(json.dumps({"methods": metrics}, indent=2) + "\n")
    print(table)
