"""The entry point: `aesthetic-jax COMMAND [--flags]`, also `python -m aesthetic_jax COMMAND`.

Each command is a module of this package. Its docstring, with an example, is its help. It has its
own flags, `FLAGS = flags.FlagValues()`, so that commands never clash over them, and `main(FLAGS)`.
Exit codes are in command_line.py. Help loads no JAX.
"""

import importlib
import logging
import os
import sys
import textwrap
import traceback
from types import ModuleType
from typing import NoReturn

from absl import flags

from aesthetic_jax.command_line import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USER_ERROR, parse_flags
from aesthetic_jax.errors import UserError
from aesthetic_jax.failures import describe_failure, silence_background_threads, watch_saves

GROUPS = {  # by what people do
    "data": {
        "synthesize": "render synthetic samples: images and manifest.jsonl",
        "build": "turn a manifest into a data set that training reads",
        "inspect": "print a data set's statistics, duplicates and leaks between its splits",
    },
    "train": {
        "train": "train with SFT or GRPO, as a config says; the same command resumes",
        "mine": "find the samples that a model gets wrong, to train more on them",
        "sweep": "run several experiments on several seeds and compare them",
    },
    "judge": {
        "evaluate": "answer the questions of a split and score the answers",
        "screen": "judge the candidates of one original image",
        "report": "compare methods: a table, learning curves and summary.json",
    },
    "export": {
        "convert": "read and write Hugging Face checkpoints and PEFT adapters",
    },
    "hardware": {
        "compile": "compile a config for a TPU that isn't here; print what it needs",
    },
}
COMMANDS = [name for commands in GROUPS.values() for name in commands]


def main(argv: list[str] | None = None) -> None:
    """Runs one command and exits with its code.

    Args:
        argv: the words after the program's name; None: those of this process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    silence_background_threads()
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        _print_error(error)
        sys.exit(EXIT_USER_ERROR)
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        _print_error("gs:// paths need gcsfs; pip install 'aesthetic-jax[gcs]'")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("--help", "-h", "-help", "help"):
        print(_overview())
        return
    name, arguments = argv[0], argv[1:]
    if name not in COMMANDS:
        raise UserError(f"no command '{name}'; the commands are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"aesthetic_jax.{name}")
    if {"--help", "-h", "-help"} & set(arguments):
        print(_help(command))
        return
    parse_flags(command.FLAGS, name, arguments)
    watch_saves(lambda error: _end_at_once(error, describe_failure(error, command.FLAGS)))
    try:
        command.main(command.FLAGS)
    except UserError:
        raise
    except Exception as error:
        message = describe_failure(error, command.FLAGS)
        if message is None:
            raise
        if "orbax.checkpoint" in sys.modules:
            _end_at_once(error, message)
        raise UserError(message) from error


def _end_at_once(error: Exception, message: str | None) -> NoReturn:
    """Ends the process without waiting for Orbax's threads or the other processes of the run.

    Args:
        message: one line for an error that the user can fix; None: an internal bug.
    """
    if message is None:
        traceback.print_exception(error)
    else:
        _print_error(message)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_BUG if message is None else EXIT_USER_ERROR)


def _print_error(message: object) -> None:
    print(f"aesthetic-jax: error: {message}", file=sys.stderr)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: aesthetic-jax COMMAND [--flags]"]
    for group, commands in GROUPS.items():
        lines += ["", group]
        lines += [f"  {name:<{width}}  {summary}" for name, summary in commands.items()]
    lines += ["", "aesthetic-jax COMMAND --help shows an example and the flags."]
    return "\n".join(lines)


def _help(command: ModuleType) -> str:
    """A command's docstring, which holds an example, and its flags."""
    flag_lines = [_flag_help(command.FLAGS[name]) for name in command.FLAGS]
    return "\n".join([(command.__doc__ or "").strip(), "", "Flags:", *flag_lines])


def _flag_help(flag: flags.Flag) -> str:
    usage = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, [], "") else f" (default: {flag.default_as_str})"
    text = flag.help + default.replace("'", "")
    indent = " " * 6
    return f"  {usage}\n{textwrap.fill(text, 96, initial_indent=indent, subsequent_indent=indent)}"


if __name__ == "__main__":
    main()
