"""What the commands' flags have in common."""

from typing import Any

from absl import flags
from ml_collections import config_flags

from aesthetic_jax.errors import UserError


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
