"""What a run directory says of how it came about: config.json, and the refusal to go on with another config."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError
from aesthetic_jax.files import write_whole

_PACKAGES = "aesthetic-jax flax grain jax jaxlib numpy optax orbax-checkpoint tensorflow-datasets transformers".split()


def _git_commit() -> str | None:
    """The commit that an installation without its repository was told it is (tpu/), else the repository's."""
    if commit := os.environ.get("AESTHETIC_JAX_COMMIT"):
        return commit
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except FileNotFoundError:  # no git, as in a slim container
        return None


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


# what the shapes of a checkpoint, or the meaning of its step, depend on; a resumed run has its model from model.json
_FIXED = ("method", "batch_size", "hard_cases.round_steps", "model.")


def write_config(config: ConfigDict, workdir: str, changes: Sequence[dict[str, Any]] = ()) -> None:
    """Writes config.json: the resolved config, versions and git commit, and the changes since the run was begun, if any."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    content = {"config": _plain(config), "versions": versions, "git_commit": _git_commit()}
    if changes:
        content["changes"] = list(changes)
    write_whole(epath.Path(workdir) / "config.json", json.dumps(content, indent=2) + "\n")


def check_same_config(config: ConfigDict, workdir: str, step: int, allow_change: bool = False) -> None:
    """Compares a config with the one that a run was begun with; prints every field that differs, one a line.

    Args:
        step: that the run goes on from.
        allow_change: go on with the new config and note the change in config.json.

    How the work is divided (`mesh`, `micro_batches`) may change: a run goes on on other devices.

    Raises:
        UserError: fields differ and that is not allowed, or never can be.
    """
    file = epath.Path(workdir) / "config.json"
    try:
        saved = json.loads(file.read_text())
        before, changes = _flat(saved["config"]), list(saved.get("changes", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: can't be read ({error}); restore it or choose another --workdir") from None
    now = _flat(_plain(config))
    fields = {
        name: [before.get(name), now.get(name)]
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name != "micro_batches" and not name.startswith("mesh.")
    }
    if not fields:
        return
    for name, (was, value) in fields.items():
        print(f"config.{name}: {was!r} -> {value!r}")
    rows = [f"{name} was {was!r} and is {value!r}" for name, (was, value) in fields.items()]
    shown = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
    if not allow_change:
        raise UserError(
            f"{file}: the run was begun with another config: {shown}; change back, choose another --workdir, or go on with "
            "--allow_config_change"
        )
    if fixed := [name for name in fields if name.startswith(_FIXED)]:
        raise UserError(
            f"{file}: {fixed[0]} can't change inside a run; begin another with --config.init_from={workdir}"
        )
    write_config(config, workdir, [*changes, {"step": step, "fields": fields}])
