"""The flag that names a config file: Python with `get_config`; other flags override its fields."""

import os
import sys
import traceback
import types
from importlib.machinery import SourceFileLoader

from absl import flags
from ml_collections import ConfigDict, config_flags

from aesthetic_jax.errors import UserError

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def define_config_file(name: str, example: str, flag_values: flags.FlagValues) -> None:
    """Adds --NAME=FILE.py[:argument], whose fields --NAME.a.b=value override.

    Args:
        example: a file name for help and errors.
    """
    config_flags.DEFINE_config_file(
        name, None, f"config file, FILE.py[:argument], such as {example}", flag_values=flag_values
    )
    flag_values[name].parser = _Parser(name, example)


class _Parser(flags.ArgumentParser):
    """Loads a config file as ml_collections does, but says in one line what is wrong with it."""

    def __init__(self, name: str, example: str):
        self.name, self.example = name, example

    def parse(self, argument: str) -> ConfigDict:
        """The config of FILE.py[:argument], locked: flags can't add fields.

        Raises:
            UserError: the file is missing, isn't Python, raises, or makes no config.
        """
        file, *words = argument.split(":", 1)
        if not file:
            raise UserError(f"--{self.name}: is empty; name a file such as {self.example}")
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            reason = f"{file}: {error.strerror}"
            raise UserError(
                f"--{self.name}: {reason}; name a file such as {self.example}"
            ) from None
        return _load(f"{self.name}_config", file, words).lock()

    def flag_type(self) -> str:
        """Its name in absl's messages."""
        return "config file"


def _load(name: str, file: str, words: list[str]) -> ConfigDict:
    """Runs the file and calls its `get_config(*words)`."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses look up the module that defines them
    try:
        SourceFileLoader(name, file).exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"{file}: has no get_config; define get_config() -> ConfigDict")
        config = module.get_config(*words)
    except UserError:
        raise
    except Exception as error:
        message = _describe(error, file)
        if message is None:
            raise
        raise UserError(message) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config returns no ConfigDict but {config!r:.80}; return one")
    return config


def _describe(error: Exception, file: str) -> str | None:
    """What is wrong with the config file; None: an internal bug in code that the file calls."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames[-1].filename.startswith(_PACKAGE) and frames[-1].filename != __file__:
        return None
    reason = " ".join(str(error).split())
    lines = [x.lineno for x in frames if os.path.abspath(x.filename) == os.path.abspath(file)]
    if lines:
        return f"{file}, line {lines[-1]}: {type(error).__name__}: {reason}; fix the config file"
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file}, line {error.lineno}: is no Python ({error.msg}); fix the config file"
    if isinstance(error, TypeError):  # get_config() does not take the words given
        return f"{file}: {reason}; write FILE.py:argument if it needs an argument, else FILE.py"
    return f"{file}: is no Python ({reason}); name a config file"
