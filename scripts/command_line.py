"""Flags of the scripts: --help, and for a wrong flag one line and exit code 2."""

import sys
from typing import NoReturn

from absl import flags


def parse_flags(values: flags.FlagValues, argv: list[str], doc: str | None) -> None:
    """Parses a script's flags into `values`.

    Args:
        values: the script's own flags.
        argv: the script's name and the words of its command line.
        doc: what --help prints before the flags.

    Raises:
        SystemExit: 0 after --help; 2 where a flag is wrong, with one line on standard error.
    """
    if any(word in ("--help", "-h", "-help") for word in argv[1:]):
        print(f"{doc}\n{values.get_help()}")
        sys.exit(0)
    try:
        rest = values(argv)[1:]
    except flags.Error as error:
        fail(argv, error)
    if rest:
        fail(argv, f"unexpected argument '{rest[0]}'; flags are written --name=value")


def fail(argv: list[str], error: object) -> NoReturn:
    """Ends the script with exit code 2 and the error in one line.

    Raises:
        SystemExit: always.
    """
    name = argv[0].rsplit("/", 1)[-1]
    print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
