"""What the commands' flags have in common."""

import contextlib
import glob
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

from aesthetic_jax.errors import UserError

HEARTBEAT_S = 20  # seconds without a sign of life after which a process counts as lost
TRY_AGAIN = (
    75  # exit code of a run that was stopped, or lost one of its processes: the same command on all hosts goes on
)


def define_config(flag_values: flags.FlagValues) -> None:
    """Adds --config=FILE.py[:argument], whose fields --config.a.b=value override."""
    config_flags.DEFINE_config_file("config", None, "config file, FILE.py[:argument]", flag_values=flag_values)


def require(arguments: flags.FlagValues, name: str) -> Any:
    """The value of a flag that must be given."""
    try:
        value = arguments[name].value
        hasattr(value, "method")  # ml_collections raises when a config file that it couldn't load is first used
    except OSError as error:
        raise UserError(f"--{name}: {str(error).splitlines()[-1].strip()}; name a file such as configs/X.py") from None
    if value is None or value == "":
        raise UserError(f"--{name} is missing; aesthetic-jax COMMAND --help lists the flags")
    return value


def define_hosts(flag_values: flags.FlagValues) -> None:
    """Adds the flags that name a run's processes where JAX can't discover them by itself."""
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0; not needed on TPU VMs and GKE", flag_values=flag_values
    )
    flags.DEFINE_integer("num_processes", None, "processes of the run", lower_bound=1, flag_values=flag_values)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", lower_bound=0, flag_values=flag_values)


def exit_stopped(folder: str) -> NoReturn:
    """Ends a command that SIGTERM stopped where it can go on."""
    print(f"aesthetic-jax: stopped by SIGTERM; the same command goes on from {folder}", file=sys.stderr)
    sys.exit(TRY_AGAIN)


@contextlib.contextmanager
def joined_hosts(arguments: flags.FlagValues) -> Iterator[None]:
    """Inside, all processes of a run know each other; JAX must not have been used before.

    They are found by the flags of `define_hosts`, or on TPU VMs and GKE by JAX itself. A process that dies takes the others
    with it: within HEARTBEAT_S and a little each ends, with the number of the lost one on standard error, and code
    TRY_AGAIN or, where the coordination service ends it, a SIGABRT.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given = {name: arguments[name].value for name in names if arguments[name].value is not None}
    if given and len(given) < len(names):
        missing = min(set(names) - given.keys())
        raise UserError(
            f"--{missing} is missing; give --coordinator_address, --num_processes and --process_id together"
        )
    if given and not given["process_id"] < given["num_processes"]:
        raise UserError(
            f"--process_id={given['process_id']}: processes are numbered from 0 to {given['num_processes'] - 1}"
        )
    if not given and not _on_tpu():
        yield
        return
    import jax

    jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT_S)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0][:300]
        print(f"aesthetic-jax: process {jax.process_index()} lost another one: {reason}", file=sys.stderr, flush=True)
        time.sleep(2 * HEARTBEAT_S)  # the coordination service says which, and ends this process
        os._exit(TRY_AGAIN)  # a plain exit would wait for the lost one
    jax.distributed.shutdown()


def _on_tpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None and bool(
        glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    )
