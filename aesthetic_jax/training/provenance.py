"""What a run directory says of how it came about: config.json, and the refusal to go on with another config."""

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError

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


def write_config(config: ConfigDict, workdir: str) -> None:
    """Writes config.json: the resolved config, versions and git commit."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    content = {"config": _plain(config), "versions": versions, "git_commit": _git_commit()}
    (epath.Path(workdir) / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def check_same_config(config: ConfigDict, workdir: str) -> None:
    """Refuses to resume a run with another config than it was begun with.

    Raises:
        UserError: names the fields that differ, with both values.
    """
    file = epath.Path(workdir) / "config.json"
    try:
        before = _flat(json.loads(file.read_text())["config"])
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UserError(f"{file}: can't be read ({error}); restore it or choose another --workdir") from None
    now = _flat(_plain(config))
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if changed:
        rows = ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed)
        raise UserError(
            f"{file}: the run was begun with another config: {rows}; change back or choose another --workdir"
        )
