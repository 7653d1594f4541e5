"""Lays our InternVL, SFT and GRPO beside PyTorch's, number by number.

    python scripts/parity.py --size=tiny --out=parity_results

prints a table and writes it to parity.md and parity.json in --out: quantity, PyTorch's value, ours, the difference, the
tolerance, pass or FAIL. Exit code 0 if every row passes, 1 if one fails, 2 if a flag needs mending, 3 if a side crashed.
It runs on a CPU, without a network, and needs the parity extra.

Sizes: `tiny` is a random model of 88,016 parameters and has every row. `2b` is InternVL3-2B with random weights, in
bfloat16 on disk as it is published, and takes 24 GB of memory; a directory is a checkpoint in the -hf layout. These two
have the rows that full-size weights can be given in an hour: no parameter gradients and no training.

What is PyTorch's: transformers' InternVLForConditionalGeneration (forward pass, `generate`), GotOcr2ImageProcessorPil,
InternVLProcessor with the -hf chat template, and TRL. OpenGVLab's own template is written out as its `chat` makes it.
TRL's trainers run themselves. Advantages come from GRPOTrainer's scoring, losses from GRPOTrainer._compute_loss and
SFTTrainer.compute_loss, and the trajectories from the two trainers' `train()`, with transformers' own AdamW, parameter
groups, schedule and clipping; only GRPOTrainer's generation is replaced, by given completions, and its reward function
reads given rewards. Completions of SFT end with "<|im_end|>\\n" as that template renders them, and both are supervised.

What is ours: the package's functions on the same samples, tokenised and tiled by the package itself. Every case has one to
three images, most of several tiles; prompts are ragged and padded on the left. Rows of gradients and weights hold each
tensor's L2 difference over its L2 norm and give the worst tensor. They leave out the biases of the vision tower's keys:
those add the same to every score of a softmax, so that their gradient is rounding alone, which Adam would blow up.

The sides run one after the other as processes of their own (--side), never both in memory, and exchange .npz files in a
work folder: first PyTorch, then ours, then transformers once more on our export. --work keeps that folder; what PyTorch
computed there is used again. --inject=NAME plants a known error into our side, to show that the table notices;
--inject=list prints them.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import parity_cases as cases
import parity_table
from absl import flags

from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("size", "tiny", "tiny, 2b, or the directory of a checkpoint in the -hf layout", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for parity.md and parity.json", flag_values=FLAGS)
flags.DEFINE_string("dtype", "float32", "float32: every row; bfloat16: the row in bfloat16 alone", flag_values=FLAGS)
flags.DEFINE_string("inject", None, "error to plant into our side; list prints them", flag_values=FLAGS)
flags.DEFINE_string("work", None, "folder to keep the exchanged arrays in; empty: a passing one", flag_values=FLAGS)
flags.DEFINE_enum("side", None, ["torch", "jax", "reopen"], "runs one side, for this script itself", flag_values=FLAGS)

PACKAGES = ("torch", "transformers", "trl", "jax", "flax", "optax")


def run_side(side: str, work: cases.Work, sections: tuple[str, ...], inject: str | None = None) -> None:
    """Computes sections of one side in this process and saves them; those that PyTorch has saved before are left alone."""
    if side == "jax":
        import jax
        import parity_errors
        import parity_jax

        with parity_errors.planted(inject), jax.default_device(jax.devices("cpu")[0]):
            for name in sections:
                arrays = parity_jax.SECTIONS[name](work)
                work.save("ours", name, {key: np.asarray(x) for key, x in arrays.items()})
        return
    import parity_torch
    import parity_trl

    parity_torch.prepare(work)
    if side == "reopen":
        work.save("ours", "export", parity_torch.reopen(work))
        return
    computed = parity_torch.SECTIONS | parity_trl.SECTIONS
    for name in sections:
        if name in computed and not work.has("torch", name):
            work.save("torch", name, computed[name](work))


def _start(side: str, arguments: flags.FlagValues, work: cases.Work) -> None:
    words = [f"--side={side}", f"--work={work.folder}", f"--size={arguments.size}", f"--dtype={arguments.dtype}"]
    words += [f"--inject={arguments.inject}"] if arguments.inject else []
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    print(f"computing {dict(torch='PyTorch', jax='ours', reopen='our export in transformers')[side]} ...", flush=True)
    code = subprocess.run([sys.executable, __file__, *words], env=environment, check=False).returncode
    if code:  # it has said why itself, unless it was killed
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
    cases.open_work("", arguments.size)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"{', '.join(missing)} can't be imported; install the parity extra: scripts/test.sh --parity does"
        )


def _claim(work: cases.Work) -> None:
    """Makes the work folder its size's own: what another size left there would be compared as if it were this one's."""
    work.folder.mkdir(parents=True, exist_ok=True)
    owner = work.folder / "size"
    if owner.exists() and owner.read_text() != work.size:
        raise UserError(f"--work: {work.folder} holds arrays of size {owner.read_text()}; name another folder")
    owner.write_text(work.size)


def _write(results: list[parity_table.Result], arguments: flags.FlagValues) -> str:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    title = f"Parity with PyTorch, size {arguments.size}, {arguments.dtype}, CPU"
    title += f", with the error {arguments.inject} planted" if arguments.inject else ""
    table = parity_table.markdown(results, title)
    table += "\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n"
    out = Path(arguments.out)
    (out / "parity.md").write_text(table)
    content = {"size": arguments.size, "dtype": arguments.dtype, "inject": arguments.inject, "versions": versions}
    # JSON has no infinity; what can't be compared (other shapes, other tensors) has no difference.
    rows = [
        row._asdict() | {"difference": row.difference if row.difference < float("inf") else None} for row in results
    ]
    (out / "parity.json").write_text(json.dumps(content | {"rows": rows}, indent=2) + "\n")
    return table


def run(arguments: flags.FlagValues) -> int:
    """The whole comparison, or one side of it; returns the exit code."""
    if arguments.inject == "list":
        import parity_errors

        for name, error in parity_errors.PLANTED.items():
            print(f"{name:<28}{error.what}")
        return 0
    if arguments.inject:
        import parity_errors

        parity_errors.find(arguments.inject)
    if arguments.side:
        work = cases.open_work(arguments.work, arguments.size)
        run_side(arguments.side, work, _sections(work, arguments), arguments.inject)
        return 0
    _check(arguments)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix="work-") as passing:
        work = cases.open_work(str(Path(arguments.work or passing).resolve()), arguments.size)
        _claim(work)
        sections = _sections(work, arguments)
        if not all(work.has("torch", name) for name in sections if name not in ("export", "load")):
            _start("torch", arguments, work)
        _start("jax", arguments, work)
        if "export" in sections:
            _start("reopen", arguments, work)
        results = parity_table.compare(work, sections)
    print(_write(results, arguments))
    return int(any(result.verdict != "pass" for result in results))


def _sections(work: cases.Work, arguments: flags.FlagValues) -> tuple[str, ...]:
    return work.sections if arguments.dtype == "float32" else ("bfloat16",)


def main(argv: list[str]) -> int:
    """Parses the flags, runs, and turns what the user must mend into one line."""
    try:
        if any(word in ("--help", "-h", "-help") for word in argv[1:]):
            print(f"{__doc__}\n{FLAGS.get_help()}")
            return 0
        if rest := FLAGS(argv)[1:]:
            raise UserError(f"unexpected argument '{rest[0]}'; flags are written --name=value")
        return run(FLAGS)
    except (UserError, flags.Error) as error:
        print(f"parity.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv))
