"""Shared by all commands: exit codes, common flags, and joining the processes of a run."""

import contextlib
import glob
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import flags

from aesthetic_jax.config_file import define_config_file
from aesthetic_jax.errors import UserError

# Exit codes beside 0: done.
EXIT_BUG = 1  # an internal bug, with its traceback
EXIT_USER_ERROR = 2  # bad input: one line on standard error says how to fix it
EXIT_RESUME = 75  # stopped by SIGTERM, or a process of the run was lost: the same command resumes
EXIT_INTERRUPTED = 130  # Ctrl-C

HEARTBEAT_S = 20  # seconds without a heartbeat after which a process counts as lost


def define_config(flag_values: flags.FlagValues) -> None:
    """Adds --config=FILE.py[:argument], whose fields --config.a.b=value override."""
    define_config_file("config", "configs/quickstart.py:sft", flag_values)


def define_hosts(flag_values: flags.FlagValues) -> None:
    """Adds the flags that name a run's processes where JAX can't discover them by itself."""
    flags.DEFINE_string(
        "coordinator_address",
        None,
        "HOST:PORT of process 0; not needed on TPU VMs and GKE",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "number of processes of the run",
        lower_bound=1,
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "number of this process, counted from 0",
        lower_bound=0,
        flag_values=flag_values,
    )


def parse_flags(flag_values: flags.FlagValues, name: str, arguments: list[str]) -> None:
    """Reads a command's arguments into its flags.

    Raises:
        UserError: an argument is no flag, or a value doesn't fit its flag.
    """
    flag_values.unparse_flags()  # forgets the values of an earlier call in this process
    try:
        rest = flag_values([f"aesthetic-jax {name}", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from None
    except (AttributeError, KeyError) as error:  # an override of an unknown field
        reason = str(error).strip("\"'")
        raise UserError(
            f"{name}: the config has no such field: {reason}; the fields of training are in"
            " aesthetic_jax/training/config.py"
        ) from None
    if rest:
        raise UserError(f"{name}: unexpected argument '{rest[0]}'; write flags as --name=value")


def require(arguments: flags.FlagValues, name: str) -> Any:
    """The value of a required flag."""
    value = arguments[name].value
    if value is None or value in ("", []):
        raise UserError(f"--{name} is missing; aesthetic-jax COMMAND --help lists the flags")
    return value


def exit_stopped(folder: str) -> NoReturn:
    """Exits a command that SIGTERM has stopped at a checkpoint or a batch."""
    print(
        f"aesthetic-jax: stopped by SIGTERM; the same command resumes from {folder}",
        file=sys.stderr,
    )
    sys.exit(EXIT_RESUME)


@contextlib.contextmanager
def joined_hosts(arguments: flags.FlagValues) -> Iterator[None]:
    """Connects all processes of a run; nothing may have used JAX's devices before.

    The flags of `define_hosts` name the processes; on TPU VMs and GKE, JAX finds them. When one
    process dies the others end too, soon after HEARTBEAT_S: each prints which one was lost and
    exits with EXIT_RESUME, or the coordination service aborts it (SIGABRT).

    Raises:
        UserError: the flags don't name the processes.
    """
    addresses = _host_flags(arguments)
    if not addresses and not _on_tpu():
        yield
        return
    import jax

    jax.distributed.initialize(**addresses, heartbeat_timeout_seconds=HEARTBEAT_S)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0][:300]
        print(
            f"aesthetic-jax: process {jax.process_index()} lost another process: {reason}",
            file=sys.stderr,
            flush=True,
        )
        # The coordination service names the lost process, and aborts this one.
        time.sleep(2 * HEARTBEAT_S)
        os._exit(EXIT_RESUME)  # a normal exit would wait for the lost process
    jax.distributed.shutdown()


def _host_flags(arguments: flags.FlagValues) -> dict[str, Any]:
    """The flags of `define_hosts`: all of them or none."""
    names = ("coordinator_address", "num_processes", "process_id")
    given: dict[str, Any] = {name: arguments[name].value for name in names}
    missing = [name for name in names if given[name] is None]
    if len(missing) == len(names):
        return {}
    if missing:
        raise UserError(
            f"--{missing[0]} is missing; give --coordinator_address, --num_processes and"
            " --process_id together"
        )
    if given["process_id"] >= given["num_processes"]:
        raise UserError(
            f"--process_id={given['process_id']}: give a number from 0 to"
            f" {given['num_processes'] - 1}, as --num_processes={given['num_processes']}"
        )
    return given


def _on_tpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None and bool(
        glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    )
