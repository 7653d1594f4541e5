"""Compares methods: a table of their scores (table.txt), learning curves and summary.json.

Example:
  aesthetic-jax report --results=results --methods=sft,grpo

Reads METHOD/metrics.json and METHOD/predictions.jsonl, which `evaluate` writes, and
runs/METHOD/metrics.jsonl, which `train` writes, in the folder --results. Writes into the same
folder. Every method is also compared with the first one, question by question. These intervals
don't cover the randomness of training, because each method has one run.
"""

import json
import pathlib
from typing import Any

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "results",
    None,
    "folder that holds METHOD and runs/METHOD, and gets the report",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "methods",
    None,
    "methods, separated by commas, in the order of the table; the others are compared with the"
    " first",
    flag_values=FLAGS,
)


def main(arguments: flags.FlagValues) -> None:
    """Writes and prints the comparison."""
    folder, methods = pathlib.Path(require(arguments, "results")), require(arguments, "methods")

    from aesthetic_jax.rl.metrics import format_differences, format_table
    from aesthetic_jax.training.comparison import compare_methods
    from aesthetic_jax.training.curves import draw_curves, read_log

    metrics = {method: _read_metrics(folder / method / "metrics.json") for method in methods}
    differences = compare_methods({method: [folder / method] for method in methods}, methods[0])
    logs = {method: [read_log(folder / "runs" / method)] for method in methods}
    draw_curves(logs, folder / "curves.png")
    table = format_table(metrics)
    if differences:
        columns = list(metrics[methods[0]]["dimensions"])
        table += "\n" + format_differences(differences, columns)
    (folder / "table.txt").write_text(table + "\n")
    summary = {"methods": metrics, "differences": differences}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table)


def _read_metrics(file: pathlib.Path) -> dict[str, Any]:
    command = f"aesthetic-jax evaluate --out={file.parent}"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; run {command} first") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); run {command} again") from None
