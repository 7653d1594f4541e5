"""Runs the experiments of a sweep on several seeds, one after the other, and lays them side by side; skips what is done.

aesthetic-jax sweep --sweep=configs/sweeps/X.py --data_dir=DIR --init_from=DIR --out=DIR [--seeds=0,1,2]

`{seed}` in --data_dir and --init_from stands for the seed. What an experiment answers lies in OUT/seedN/EXPERIMENT, its run in
OUT/seedN/runs/EXPERIMENT; `start` is the model of --init_from itself, whose rollouts on the split, OUT/seedN/start/mined, tell
which quarter of it is hard.
"""

import json
import pathlib
import subprocess
import sys

from absl import flags
from ml_collections import config_flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("sweep", None, "sweep file, such as configs/sweeps/quickstart.py", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "data set that `build` made", flag_values=FLAGS)
flags.DEFINE_string("init_from", None, "model that every experiment begins with", flag_values=FLAGS)
flags.DEFINE_string("out", None, "results folder", flag_values=FLAGS)
flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the experiments", flag_values=FLAGS)
flags.DEFINE_list("experiments", [], "of the sweep; empty: all", flag_values=FLAGS)
flags.DEFINE_string("split", "test", "what is answered", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    sweep, data_dir, init_from, out = (require(arguments, x) for x in ("sweep", "data_dir", "init_from", "out"))
    for field in ("config", "experiments"):
        if field not in sweep:
            raise UserError(f"--sweep: has no field '{field}'; see configs/sweeps/quickstart.py")
    experiments = dict(sweep.experiments)
    names = arguments.experiments or list(experiments)
    if unknown := [name for name in names if name not in experiments]:
        raise UserError(f"--experiments: no '{unknown[0]}'; the sweep has {', '.join(experiments)}")
    if taken := {"start", "runs"} & experiments.keys():
        raise UserError(
            f"--sweep: '{min(taken)}' is no name for an experiment: the results folder uses it; choose another"
        )
    if bad := [seed for seed in arguments.seeds if not seed.isdecimal()]:
        raise UserError(f"--seeds: '{bad[0]}' is no seed; give numbers, such as 0,1,2")

    from aesthetic_jax.rl.scores import format_seeds
    from aesthetic_jax.training.curves import draw_curves, read_log

    folders = [pathlib.Path(out) / f"seed{seed}" for seed in arguments.seeds]
    for seed, folder in zip(arguments.seeds, folders, strict=True):
        data, start = (text.replace("{seed}", seed) for text in (data_dir, init_from))
        common = (f"--config={sweep.config}", f"--config.data.data_dir={data}", f"--config.seed={seed}")
        split = f"--split={arguments.split}"
        _unless(folder / "start" / "metrics.json", "evaluate", *common, f"--checkpoint={start}", split)
        _unless(folder / "start" / "mined" / "table.npz", "mine", *common, f"--checkpoint={start}", split)
        for name in names:
            metrics, run = folder / name / "metrics.json", folder / "runs" / name
            if not metrics.exists():
                fields = [f"--config.{field}" for field in experiments[name]]
                _command("train", *common, *fields, f"--config.init_from={start}", f"--workdir={run}")
            _unless(metrics, "evaluate", *common, f"--checkpoint={run}", split)
    rows = ["start", *names]
    metrics = {name: [json.loads((x / name / "metrics.json").read_text()) for x in folders] for name in rows}
    hard = {name: [_exact_on_hard_quarter(x / "start" / "mined", x / name) for x in folders] for name in rows}
    logs = {name: [read_log(x / "runs" / name) for x in folders] for name in names}
    draw_curves(logs, pathlib.Path(out) / "curves.png")
    table = format_seeds(metrics, hard)
    (pathlib.Path(out) / "table.txt").write_text(table + "\n")
    summary = {"seeds": arguments.seeds, "experiments": metrics, "exact_on_hard_quarter": hard}
    (pathlib.Path(out) / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(table)
    print(out)


def _unless(file: pathlib.Path, *words: str) -> None:
    """Runs a command that writes `file` as its last, unless it is there."""
    if not file.exists():
        _command(*words, f"--out={file.parent}")


def _command(*words: str) -> None:
    print(f"aesthetic-jax {' '.join(words)}", file=sys.stderr, flush=True)
    code = subprocess.run(
        [sys.executable, "-m", "aesthetic_jax", *words], stdout=subprocess.DEVNULL, check=False
    ).returncode
    if code:  # the command has said why
        sys.exit(code)


def _exact_on_hard_quarter(mined: pathlib.Path, answers: pathlib.Path) -> float:
    """Share of exact answers among the quarter of the questions that the first model's rollouts solved least often."""
    rates = {(row := json.loads(line))["id"]: row["exact"] for line in (mined / "completions.jsonl").open()}
    hardest = sorted(rates, key=lambda name: (rates[name], name))[: max(1, len(rates) // 4)]
    rows = {(row := json.loads(line))["id"]: row for line in (answers / "predictions.jsonl").open()}
    return sum(rows[name]["predicted"] == rows[name]["answer"] for name in hardest) / len(hardest)
