"""One-line messages for operating-system errors that the user can fix.

The user can fix a full disk, and any other refusal by the operating system if the file is at, below
or above a path that the user gave. All other errors are internal bugs and keep their traceback.
"""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_REFUSED_PATH = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}

# Flags that name what a command writes.
_OUTPUT_FLAGS = ("workdir", "out", "to", "to_hf", "to_peft", "results")

# Libraries in C++ and Rust raise errors of their own. tensorstore writes "[os_error_code='28']",
# safetensors "(os error 28)"; tensorstore puts paths between double quotes.
_ERRNO_IN_TEXT = re.compile(r"os[ _]error(?:_code=')?[ :]*(\d+)", re.IGNORECASE)
_PATH_IN_TEXT = re.compile(r'"(/[^"\\]+)')


def describe_failure(error: Exception, flag_values: flags.FlagValues) -> str | None:
    """The one line for a refused path or a full disk; None: an internal bug.

    Args:
        error: the error that a command raised: an OSError, or a library's error whose text contains
            the errno.
        flag_values: the command's flags, which hold the paths that the user gave.
    """
    code, file = _errno_and_file(error)
    if code in _FULL_DISK:
        outputs = (flag_values[name].value for name in _OUTPUT_FLAGS if name in flag_values)
        file = file or next(filter(None, outputs), "the folder for temporary files")
        hint = "free some space and run the same command again"
        if "workdir" in flag_values and flag_values.workdir:
            hint += f"; {_newest_checkpoint(flag_values.workdir)}"
        return f"{file}: {os.strerror(code)}; {hint}"
    if code in _REFUSED_PATH and file is not None and _is_named(file, _strings(flag_values)):
        return f"{file}: {os.strerror(code)}; fix this path or choose another one"
    return None


def _errno_and_file(error: Exception) -> tuple[int | None, str | None]:
    if isinstance(error, OSError):
        return error.errno, None if error.filename is None else os.fsdecode(error.filename)
    found = _ERRNO_IN_TEXT.search(str(error))
    paths = _PATH_IN_TEXT.findall(str(error))
    return int(found[1]) if found else None, paths[-1].rstrip("/") if paths else None


def _newest_checkpoint(workdir: str) -> str:
    """Where a training run resumes from, in words."""
    from aesthetic_jax.checkpoints.runs import newest_step

    logging.disable()  # no warnings about damaged checkpoints: an error is one line
    step = newest_step(workdir)
    if step is None:
        return "no checkpoint is whole yet"
    return f"the newest whole checkpoint is {workdir}/checkpoints/{step}"


def _strings(value: Any) -> Iterator[str]:
    """All strings in flags, configs and lists: among them every path that the user named."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, flags.FlagValues):
        for name in value:
            yield from _strings(value[name].value)
    elif isinstance(value, dict | ConfigDict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _is_named(file: str, given: Iterable[str]) -> bool:
    """Whether a file is at, below or above a path; .NAME.* and NAME.* hold what NAME will be."""
    file = os.path.realpath(file)
    for path in (os.path.realpath(path) for path in given if path and "\0" not in path):
        parent, name = os.path.split(path)
        first = os.path.relpath(file, parent).split(os.sep)[0].lstrip(".")
        at_or_below = f"{first}.".startswith(f"{name}.")
        above = path.startswith(file.rstrip(os.sep) + os.sep)
        if at_or_below or above:
            return True
    return False


def silence_background_threads() -> None:
    """Stops Orbax's threads from printing a failed write; the main thread gets the error anyway."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not _is_orbax_failure(record))
    default_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # tensorstore reports later writes to an event loop that the first failure has closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            default_hook(unraisable)

    sys.unraisablehook = hook


def watch_saves(end: Callable[[Exception], None]) -> None:
    """In a run of several processes, calls `end` when Orbax fails to write a checkpoint.

    Orbax raises in the main thread only after a barrier that the other processes never reach,
    because they wait at another one. Only Orbax's log reports the failure earlier.
    """

    def watch(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if record.threadName == "async_save" and isinstance(error, Exception):
            import jax

            if jax.process_count() > 1:
                end(error)
        return True

    logging.getLogger("absl").addFilter(watch)


def _is_orbax_failure(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR and f"{os.sep}orbax{os.sep}" in record.pathname
