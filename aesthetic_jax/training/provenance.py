"""A run directory's config.json, and its comparison with the config of a resuming run."""

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

_PACKAGES = (
    "aesthetic-jax",
    "flax",
    "grain",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "transformers",
)
# These decide a checkpoint's shapes and the meaning of its step, so they can't change in a run.
_FIXED = ("method", "batch_size", "hard_cases.round_steps", "model.")


def write_config(config: ConfigDict, workdir: str, changes: Sequence[dict[str, Any]] = ()) -> None:
    """Writes config.json: the resolved config, versions, the git commit, and later changes."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    content = {
        "config": _plain(config),
        "versions": versions | {"python": platform.python_version()},
        "git_commit": _git_commit(),
    }
    if changes:
        content["changes"] = list(changes)
    write_whole(epath.Path(workdir) / "config.json", json.dumps(content, indent=2) + "\n")


def read_run_config(run: str) -> dict[str, Any]:
    """The config in a run's config.json; empty where `convert` made the run.

    Raises:
        UserError: the file can't be read.
    """
    file = epath.Path(run) / "config.json"
    if not file.exists():
        return {}
    return _read(file)["config"]


def check_same_config(
    config: ConfigDict, workdir: str, step: int, allow_change: bool = False
) -> None:
    """Compares a config with the one that a run started with; prints each field that differs.

    How the work is divided (`mesh`, `micro_batches`) may change: a run resumes on other devices.

    Args:
        step: the step that the run resumes from.
        allow_change: continue with the new config, and record the change in config.json.

    Raises:
        UserError: fields differ, and the change isn't allowed or is never possible.
    """
    file = epath.Path(workdir) / "config.json"
    saved = _read(file)
    before, now = _flat(saved["config"]), _flat(_plain(config))
    fields = {
        name: [before.get(name), now.get(name)]
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
        and name != "micro_batches"
        and not name.startswith("mesh.")
    }
    if not fields:
        return
    for name, (old, new) in fields.items():
        print(f"config.{name}: {old!r} -> {new!r}")
    rows = [f"{name} was {old!r} and is {new!r}" for name, (old, new) in fields.items()]
    shown = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
    if not allow_change:
        raise UserError(
            f"{file}: the run was started with another config: {shown}; change back, choose "
            "another --workdir, or continue with --allow_config_change"
        )
    if fixed := [name for name in fields if name.startswith(_FIXED)]:
        raise UserError(
            f"{file}: {fixed[0]} can't change inside a run; start another with "
            f"--config.init_from={workdir}"
        )
    changes = [*saved.get("changes", ()), {"step": step, "fields": fields}]
    write_config(config, workdir, changes)


def _read(file: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
        if not isinstance(content["config"], dict):
            raise TypeError("its config is no object")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: can't be read ({error}); restore it or choose another run directory"
        ) from None


def _git_commit() -> str | None:
    """The git commit: as recorded by an installation (tpu/), else the repository's."""
    if commit := os.environ.get("AESTHETIC_JAX_COMMIT"):
        return commit
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        return result.stdout.strip() or None
    except FileNotFoundError:  # no git, as in a slim container
        return None


def _plain(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        is_section = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return flat
