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


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    results, methods = require(arguments, "results"), require(arguments, "methods")

    import pathlib

    from aesthetic_jax.rl.scores import format_table
    from aesthetic_jax.training.curves import draw_curves, read_log

    folder = pathlib.Path(results)
    metrics = {method: _read_json(folder / method / "metrics.json") for method in methods}
    draw_curves({name: [read_log(folder / "runs" / name)] for name in methods}, folder / "curves.png")
    table = format_table(metrics)
    (folder / "table.txt").write_text(table + "\n")
    (folder / "summary.json").write_text(json.dumps({"methods": metrics}, indent=2) + "\n")
    print(table)
