"""Compares our InternVL, SFT and GRPO with PyTorch's, number by number.

    python scripts/parity.py --size=tiny --out=parity_results

prints a table and writes it to parity.md and parity.json in --out: quantity, PyTorch's value, ours,
the difference, the tolerance, pass or FAIL. Exit codes: 0 all rows pass, 1 a row fails, 2 a flag
is wrong, 3 a side crashed. Runs on a CPU without a network; needs the parity extra.

Sizes:
  tiny       a random model of 88,016 parameters; has every row
  2b         InternVL3-2B with random weights, in bfloat16 on disk as published; needs 24 GB
  DIRECTORY  a checkpoint in the -hf layout
The last two leave out parameter gradients and training, and take about half an hour.

PyTorch's side: transformers' InternVLForConditionalGeneration (forward pass, `generate`),
GotOcr2ImageProcessorPil, InternVLProcessor with the -hf chat template, and TRL. OpenGVLab's own
template is rebuilt from its `chat`. Advantages come from GRPOTrainer's scoring, losses from
GRPOTrainer._compute_loss and SFTTrainer.compute_loss, trajectories from the trainers' `train()`
with transformers' AdamW, parameter groups, schedule and clipping. Only GRPOTrainer's generation and
rewards are replaced with given ones. SFT completions end with "<|im_end|>\\n", as the template
renders them, and both tokens are supervised.

Our side: the package's functions on the same samples, which it tokenises and tiles itself. Each
sample has one to three images, most of several tiles; prompts are ragged and left-padded. Rows of
gradients and weights show the worst tensor's L2 difference over its L2 norm. They leave out the
key biases of the vision tower: these add the same to all scores of a softmax, so their gradient is
rounding alone, which Adam would scale up.

The sides run one after the other, each in its own process (--side), and exchange .npz files in a
work folder: PyTorch, ours, then transformers on our export. --work keeps the folder; PyTorch's
arrays there are reused. --inject=NAME plants a known error in our side, to show that the table
detects it; --inject=list prints all errors.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import flags
from command_line import fail, parse_flags
from paritylib import report, rows
from paritylib.sides import SIDES, run_side
from paritylib.work import Work, open_work

from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "size", "tiny", "tiny, 2b, or the directory of a checkpoint in the -hf layout",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("out", None, "folder for parity.md and parity.json", flag_values=FLAGS)
flags.DEFINE_string(
    "dtype", "float32", "float32: all rows; bfloat16: the bfloat16 row alone", flag_values=FLAGS
)
flags.DEFINE_string(
    "inject", None, "error to plant into our side; list prints them", flag_values=FLAGS
)
flags.DEFINE_string(
    "work", None, "folder that keeps the exchanged arrays; default: a temporary one",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "side", None, list(SIDES), "run this side alone; parity.py starts itself with it",
    flag_values=FLAGS,
)  # fmt: skip


def _start_side(side: str, arguments: flags.FlagValues, work: Work) -> None:
    """Runs one side in a process of its own; ends this one if the side fails."""
    command = [
        sys.executable,
        __file__,
        f"--side={side}",
        f"--work={work.folder}",
        f"--size={arguments.size}",
        f"--dtype={arguments.dtype}",
    ]
    command += [f"--inject={arguments.inject}"] if arguments.inject else []
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    print(f"computing {SIDES[side]} ...", flush=True)
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:  # the side has printed why, unless it was killed
        print(f"parity.py: the {side} side ended with code {code}", file=sys.stderr)
        sys.exit(2 if code == 2 else 3)


def _check(arguments: flags.FlagValues) -> None:
    """Refuses flags that would only fail later."""
    if arguments.dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype: no '{arguments.dtype}'; choose float32 or bfloat16")
    if not arguments.out:
        raise UserError("--out is missing; name a folder for parity.md and parity.json")
    if Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise UserError(f"--out: {arguments.out} is a file; name a folder")
    open_work("", arguments.size)
    missing = [name for name in report.PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"can't import {', '.join(missing)}; install the parity extra, "
            "as scripts/test.sh --parity does"
        )


def _list_errors() -> None:
    from paritylib import errors

    for name, error in errors.PLANTED.items():
        print(f"{name:<28}{error.what}")


def _sections(work: Work, arguments: flags.FlagValues) -> tuple[str, ...]:
    return work.sections if arguments.dtype == "float32" else ("bfloat16",)


def _compare_sides(arguments: flags.FlagValues) -> list[rows.Result]:
    """Runs all sides and compares what they saved."""
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix="work-") as temporary:
        work = open_work(str(Path(arguments.work or temporary).resolve()), arguments.size)
        work.claim()
        sections = _sections(work, arguments)
        if not all(work.has("torch", name) for name in sections if name not in ("export", "load")):
            _start_side("torch", arguments, work)
        _start_side("jax", arguments, work)
        if "export" in sections:
            _start_side("reopen", arguments, work)
        return rows.compare(work, sections)


def run(arguments: flags.FlagValues) -> int:
    """The comparison, one side of it, or the list of errors; returns the exit code."""
    if arguments.inject == "list":
        _list_errors()
        return 0
    if arguments.inject:
        from paritylib import errors

        errors.find(arguments.inject)
    if arguments.side:
        work = open_work(arguments.work, arguments.size)
        run_side(arguments.side, work, _sections(work, arguments), arguments.inject)
        return 0
    _check(arguments)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    results = _compare_sides(arguments)
    print(
        report.write_report(
            out, results, size=arguments.size, dtype=arguments.dtype, inject=arguments.inject
        )
    )
    return int(any(result.verdict != "pass" for result in results))


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    parse_flags(FLAGS, argv, __doc__)
    try:
        return run(FLAGS)
    except UserError as error:
        fail(argv, error)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
