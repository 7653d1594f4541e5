"""Where a trained model comes from: its training runs, its base model and that model's licence."""

import json
import os
import re
from typing import Any, NamedTuple

from etils import epath

from aesthetic_jax.checkpoints.hub import HubModel, parse_hub_name
from aesthetic_jax.checkpoints.runs import run_directory
from aesthetic_jax.files import in_object_store

_BASE_FILE = "base_model.json"
_MAX_STAGES = 20  # a longer chain of runs must be a cycle
_FRONT_MATTER = re.compile(r"---\n(.*?)\n---", re.DOTALL)
_LICENSE = re.compile(r"^(license|license_name|license_link): *(\S.*?) *$", re.MULTILINE)


class License(NamedTuple):
    """A licence as model cards name it."""

    identifier: str  # such as "apache-2.0", or "other"
    name: str | None = None
    link: str | None = None


class BaseModel(NamedTuple):
    """The model that training started from."""

    name: str  # OWNER/NAME on the hub; without a slash: name of a local directory
    license: License | None = None


class Stage(NamedTuple):
    """One training run."""

    name: str  # of its directory
    config: dict[str, Any]  # resolved; `init_from` without folders
    num_samples: int | None  # of its train split, if the data still exists
    versions: dict[str, str]
    git_commit: str | None


class Lineage(NamedTuple):
    """The base model and training stages of a model."""

    stages: tuple[Stage, ...]  # in order of training
    base: BaseModel | None  # None: random parameters, or unknown
    from_scratch: bool = False


def write_base(run: str, base: BaseModel) -> None:
    """Records in a run directory that its parameters are those of a base model."""
    content = {"name": base.name, "license": base.license and base.license._asdict()}
    (epath.Path(run) / _BASE_FILE).write_text(json.dumps(content, indent=2) + "\n")


def describe_base(name: str, folder: str) -> BaseModel:
    """Describes a base model by the name that the user gave and by its files in a local folder."""
    return BaseModel(_public_name(name), read_license(folder))


def read_license(folder: str) -> License | None:
    """Reads a licence from the front matter of README.md, else from LICENSE; None: neither."""
    readme = epath.Path(folder) / "README.md"
    if readme.exists() and (front_matter := _FRONT_MATTER.match(readme.read_text())):
        fields = {name: value.strip("\"'") for name, value in _LICENSE.findall(front_matter[1])}
        if "license" in fields:
            name, link = fields.get("license_name"), fields.get("license_link")
            return License(fields["license"], name, link)
    for name in ("LICENSE", "LICENSE.md", "LICENSE.txt"):
        if (file := epath.Path(folder) / name).exists():
            text = file.read_text()
            if "Apache License" in text and "Version 2.0" in text:
                return License("apache-2.0")
            return License("mit" if text.lstrip().startswith("MIT License") else "other")
    return None


def trace(run: str) -> Lineage:
    """Follows `init_from` from a run, or one of its checkpoints, back to the base model.

    What can't be found is left out: runs may have been moved, and their data deleted.
    """
    stages, path = [], run
    while len(stages) < _MAX_STAGES and not _hub_model(path):
        folder = run_directory(path)
        if base := _read_base(folder):
            return Lineage(tuple(stages), base)
        record = _read_object(folder / "config.json")
        if record is None or not isinstance(record.get("config"), dict):
            break
        path = _find_start(folder, record["config"].get("init_from") or "")
        stages.insert(0, _make_stage(folder.name, record, path))
        if not path:
            return Lineage(tuple(stages), None, from_scratch=True)
    if not stages:
        return Lineage((), None)
    base = BaseModel(model.repo) if (model := _hub_model(path)) else describe_base(path, path)
    return Lineage(tuple(stages), base)


def _find_start(run: epath.Path, init_from: str) -> str:
    """Resolves an `init_from`; a relative path is relative to where the run was started."""
    if init_from and "://" not in init_from and not os.path.exists(init_from):
        for folder in run.parents:
            if run_directory(str(folder / init_from)).exists():
                return str(folder / init_from)
    return init_from


def _make_stage(name: str, record: dict[str, Any], start: str) -> Stage:
    config = record["config"]
    return Stage(
        name=name,
        config=config | {"init_from": _public_name(start)},
        num_samples=_count_samples(config.get("data") or {}),
        versions=record.get("versions") or {},
        git_commit=record.get("git_commit"),
    )


def _hub_model(path: str) -> HubModel | None:
    return None if os.path.exists(path) else parse_hub_name(path)


def _public_name(path: str) -> str:
    """A name without folders: OWNER/NAME of a model of the hub, else the directory's own name."""
    if model := _hub_model(path):
        return model.repo
    return run_directory(path).name if path else ""


def _read_base(folder: epath.Path) -> BaseModel | None:
    content = _read_object(folder / _BASE_FILE)
    if content is None or not isinstance(content.get("name"), str):
        return None
    license_ = content.get("license")
    return BaseModel(content["name"], License(**license_) if license_ else None)


def _read_object(file: epath.Path) -> dict[str, Any] | None:
    """A JSON object; None if the file is missing or holds none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _count_samples(data: dict[str, Any]) -> int | None:
    """Counts a config's training samples without opening images; None: they can't be found."""
    manifest, data_dir = data.get("manifest") or "", data.get("data_dir") or ""
    if in_object_store(manifest or data_dir):
        return None
    try:
        if manifest:
            with epath.Path(manifest).open() as lines:
                return sum(json.loads(line).get("split") == "train" for line in lines)
        folder = epath.Path(data_dir)
        files = [folder / "dataset_info.json", *folder.glob("*/*/dataset_info.json")]
        file = next(file for file in files if file.exists())
        splits = {split["name"]: split for split in json.loads(file.read_text())["splits"]}
        return sum(map(int, splits["train"]["shardLengths"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return None
