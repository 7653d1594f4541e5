"""The command line: `aesthetic-jax COMMAND [--flags]`, also `python -m aesthetic_jax COMMAND [--flags]`.

Every command is one module at the package's root. It holds its own flags, `FLAGS = flags.FlagValues()`, so that commands
never share or clash over them, and `main(FLAGS)`. Exit codes: 0 done, 2 the user's input needs mending (one line on
standard error says what and how). A traceback is a bug of ours.
"""

import importlib
import logging
import sys

from absl import flags

from aesthetic_jax.errors import UserError

COMMANDS = {
    "synthesize": "render synthetic samples: images and manifest.jsonl",
    "build": "turn a manifest into a TFDS data set (ArrayRecord)",
    "inspect": "a data set's statistics, duplicates and leaks, and a contact sheet",
    "train": "run a config: SFT or GRPO; the same command resumes",
    "mine": "find a split's hard cases, with every sample's completions",
    "evaluate": "answer a split's questions and score them",
    "report": "lay methods side by side: table, curves, summary.json",
    "sweep": "run a sweep's experiments on several seeds: table and curves over seeds",
    "screen": "judge the candidates of one original image",
    "compile": "compile a config's steps for a TPU that isn't here; what they need of it",
    "convert": "Hugging Face checkpoints in and out",
}


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: aesthetic-jax COMMAND [--flags]", "", *lines, "", "aesthetic-jax COMMAND --help lists its flags"]
    )


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    name, arguments = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(f"no command '{name}'; the commands are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"aesthetic_jax.{name}")
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(f"{command.__doc__}\n{command.FLAGS.get_help()}")
        return
    for flag in command.FLAGS:  # in one process, they keep their values from one call to the next
        command.FLAGS[flag].unparse()
    try:
        rest = command.FLAGS([f"aesthetic-jax {name}", *arguments])[1:]
        if rest:
            raise UserError(f"{name}: unexpected argument '{rest[0]}'; flags are written --name=value")
    except flags.Error as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    except AttributeError as error:  # an override of a field that the config doesn't have
        raise UserError(
            f"{name}: --config has no field {error}; `train`'s are in aesthetic_jax/training/config.py"
        ) from None
    command.main(command.FLAGS)


def main(argv: list[str] | None = None) -> None:
    """Runs one command and exits with its code.

    Args:
        argv: the words after the program's name; those of the process when None.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"aesthetic-jax: error: {error}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("aesthetic-jax: error: gs:// paths need gcsfs; pip install 'aesthetic-jax[gcs]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
