r"""Runs the experiments of a sweep on several seeds and compares them; finished ones are skipped.

Example:
  aesthetic-jax sweep --sweep=configs/sweeps/quickstart.py --data_dir=shop/data{seed} \
    --init_from=runs/sft{seed} --seeds=0,1,2 --out=results/sweep

A sweep file names a config and, for each experiment, the fields that it changes. `{seed}` in
--data_dir and --init_from stands for the seed. Each experiment is trained and then evaluated:

OUT/seedN/runs/EXPERIMENT    run directory
OUT/seedN/EXPERIMENT         its metrics.json and predictions.jsonl on the split
OUT/seedN/start              the same for the model of --init_from itself
OUT/seedN/start/mined        completions of that model, which define the split's hard quarter
OUT/table.txt, curves.png, summary.json    the comparison over all seeds

Differences between methods are paired by seed and question.
"""

import json
import pathlib
import random
import subprocess
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from aesthetic_jax.command_line import require
from aesthetic_jax.config_file import define_config_file
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config_file("sweep", "configs/sweeps/quickstart.py", FLAGS)
flags.DEFINE_string("data_dir", None, "data set that `build` has made", flag_values=FLAGS)
flags.DEFINE_string("init_from", None, "model that every experiment starts from", flag_values=FLAGS)
flags.DEFINE_string("out", None, "results folder", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds, separated by commas", flag_values=FLAGS)
flags.DEFINE_list("experiments", [], "which experiments to run; empty: all", flag_values=FLAGS)
flags.DEFINE_string(
    "split", "test", "split that the experiments are evaluated on", flag_values=FLAGS
)
flags.DEFINE_bool(
    "hard_quarter",
    True,
    "sample answers of the starting model to every question, to find the split's hard quarter",
    flag_values=FLAGS,
)


def main(arguments: flags.FlagValues) -> None:
    """Runs what isn't finished, then writes and prints the comparison."""
    sweep, data_dir, init_from, out, seeds = (
        require(arguments, name) for name in ("sweep", "data_dir", "init_from", "out", "seeds")
    )
    experiments = _chosen_experiments(sweep, arguments.experiments)
    if bad := [seed for seed in seeds if not seed.isdecimal()]:
        raise UserError(f"--seeds: '{bad[0]}' is not a seed; give numbers, such as 0,1,2")

    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        data, start = (path.replace("{seed}", seed) for path in (data_dir, init_from))
        common = [
            f"--config={sweep.config}",
            f"--config.data.data_dir={data}",
            f"--config.seed={seed}",
        ]
        folder, split = out / f"seed{seed}", f"--split={arguments.split}"
        _run_seed(folder, common, start, experiments, split, arguments.hard_quarter)
    _compare(out, seeds, ["start", *experiments], arguments.hard_quarter)
    print(out)


def _chosen_experiments(sweep: ConfigDict, names: list[str]) -> dict[str, tuple[str, ...]]:
    """The fields changed by each experiment in `names`, or by all experiments."""
    for field in ("config", "experiments"):
        if field not in sweep:
            raise UserError(f"--sweep: has no field '{field}'; see configs/sweeps/quickstart.py")
    pairs: Any = sweep["experiments"]
    try:
        experiments: dict[str, tuple[str, ...]] = dict(pairs)
    except (TypeError, ValueError):
        raise UserError(
            "--sweep: experiments must be pairs (name, fields); see configs/sweeps/quickstart.py"
        ) from None
    if unknown := [name for name in names if name not in experiments]:
        raise UserError(f"--experiments: no '{unknown[0]}'; the sweep has {', '.join(experiments)}")
    if reserved := {"start", "runs"} & experiments.keys():
        raise UserError(
            f"--sweep: no experiment may be called '{min(reserved)}', a name in the results"
            " folder; choose another"
        )
    return {name: experiments[name] for name in names or experiments}


def _run_seed(
    folder: pathlib.Path,
    common: list[str],
    start: str,
    experiments: dict[str, tuple[str, ...]],
    split: str,
    hard_quarter: bool,
) -> None:
    """Evaluates the model at `start`, then trains and evaluates every experiment.

    Args:
        folder: folder for the results of this seed.
        common: flags that all commands get.
        start: the model that the experiments start from.
        split: flag that names the split.
        hard_quarter: whether to mine the split with the model at `start`.
    """

    def run_unless_done(command: str, last_file: pathlib.Path, checkpoint: object) -> None:
        if not last_file.exists():
            flags = [f"--checkpoint={checkpoint}", split, f"--out={last_file.parent}"]
            _run_command(command, *common, *flags)

    run_unless_done("evaluate", folder / "start" / "metrics.json", start)
    if hard_quarter:
        run_unless_done("mine", folder / "start" / "mined" / "table.npz", start)
    for name, fields in experiments.items():
        metrics, run = folder / name / "metrics.json", folder / "runs" / name
        if not metrics.exists():
            changes = [f"--config.{field}" for field in fields]
            init = f"--config.init_from={start}"
            _run_command("train", *common, *changes, init, f"--workdir={run}")
        run_unless_done("evaluate", metrics, run)


def _run_command(*words: str) -> None:
    """Runs an aesthetic-jax command in a process of its own; exits with its code if it fails."""
    print(f"aesthetic-jax {' '.join(words)}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "aesthetic_jax", *words]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:  # the command has printed the reason
        sys.exit(code)


def _compare(out: pathlib.Path, seeds: list[str], names: list[str], hard_quarter: bool) -> None:
    """Writes table.txt, curves.png and summary.json, and prints the table.

    Args:
        names: the rows of the table: `start`, then the experiments.
        hard_quarter: whether the table has a column for it.
    """
    from aesthetic_jax.rl.metrics import format_differences, format_seeds
    from aesthetic_jax.training.comparison import compare_methods
    from aesthetic_jax.training.curves import draw_curves, read_log

    folders = [out / f"seed{seed}" for seed in seeds]
    metrics = {
        name: [json.loads((folder / name / "metrics.json").read_text()) for folder in folders]
        for name in names
    }
    places = {name: [folder / name for folder in folders] for name in names}
    experiments = {name: places[name] for name in names[1:]}
    to_start = compare_methods(places, "start")
    to_first = compare_methods(experiments, names[1])
    hard = {
        name: [_exact_on_hard_quarter(x / "start" / "mined", x / name) for x in folders]
        for name in (names if hard_quarter else ())
    }
    logs = {name: [read_log(x / "runs" / name) for x in folders] for name in names[1:]}
    draw_curves(logs, out / "curves.png")
    columns = list(metrics["start"][0]["dimensions"])
    blocks = [format_differences(x, columns) for x in (to_start, to_first) if x]
    table = "\n".join([format_seeds(metrics, hard), *blocks])
    (out / "table.txt").write_text(table + "\n")
    summary = {
        "seeds": seeds,
        "experiments": metrics,
        "exact_on_hard_quarter": hard,
        "differences": to_start,
        "differences_between_experiments": to_first,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table)


def _exact_on_hard_quarter(mined: pathlib.Path, results: pathlib.Path) -> float:
    """Share of exact answers on the quarter of the samples that the first model solved least often.

    Difficulty comes from completions that the first model samples. Scored answers are greedy, so
    the two share no noise. Still, that model's failures choose the quarter: compare the experiments
    there with each other, not with `start`.

    Args:
        mined: folder with completions.jsonl of the first model.
        results: folder with predictions.jsonl of the experiment.
    """
    from aesthetic_jax.training.comparison import read_predictions

    lines = (mined / "completions.jsonl").read_text().splitlines()
    hardest = hardest_quarter({row["id"]: row["exact"] for row in map(json.loads, lines)})
    rows = {row["id"]: row for row in read_predictions(results)}
    return sum(rows[name]["predicted"] == rows[name]["answer"] for name in hardest) / len(hardest)


def hardest_quarter(rates: dict[str, float]) -> list[str]:
    """Names of the quarter with the lowest rates; a fixed random order breaks ties.

    The order of names can't break ties: it may follow dimension, time or source of the samples.
    """
    names = sorted(rates)
    random.Random(0).shuffle(names)
    return sorted(names, key=rates.__getitem__)[: max(1, len(names) // 4)]
