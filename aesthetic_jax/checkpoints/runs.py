"""Run directories: architecture, tokenizer, and Orbax checkpoints of training.

A run directory holds `model.json` (the architecture), `tokenizer/` and `checkpoints/STEP/`. Each
checkpoint has `parameters`, `optimizer`, `progress` (host arrays that decide the next batches) and
`checksums.txt`. Its directory gets its final name once it is complete. Damaged checkpoints are
skipped.
"""

import dataclasses
import json
import logging
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from aesthetic_jax.checkpoints.integrity import find_damage, write_checksums
from aesthetic_jax.data.tokenizer import ChatTokenizer, copy_tokenizer, load_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import Parameters, abstract_model


class LoadedModel(NamedTuple):
    """A model and what is needed to run it."""

    architecture: InternVLConfig
    parameters: Parameters
    tokenizer: ChatTokenizer
    path: str  # checkpoint or directory that it was read from; "" for random parameters


def write_architecture(run: str, config: InternVLConfig) -> None:
    """Writes `model.json`."""
    folder = epath.Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_architecture(run: str) -> InternVLConfig:
    """Reads `model.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    file = epath.Path(run) / "model.json"
    try:
        fields = json.loads(file.read_text())
        vision, text = VisionConfig(**fields.pop("vision")), TextConfig(**fields.pop("text"))
        return InternVLConfig(vision, text, **fields)
    except FileNotFoundError:
        raise UserError(
            f"{file}: is missing; name a run directory or one of its checkpoints"
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file}: is no model description ({error}); restore the file that the run wrote"
        ) from None


def open_manager(run: str, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; removes unfinished ones.

    Args:
        keep: number of newest checkpoints to keep; None: all.
    """
    folder = _absolute(epath.Path(run) / "checkpoints")

    def add_checksums() -> None:  # Orbax calls it when all files are written, before the rename
        for checkpoint in folder.iterdir():
            if (checkpoint / "progress").exists() and not (checkpoint / "checksums.txt").exists():
                write_checksums(checkpoint)

    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        step_prefix=None,
        create=True,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=add_checksums),
    )
    return ocp.CheckpointManager(folder, options=options)


def save(
    manager: ocp.CheckpointManager, step: int, parameters: Parameters, optimizer: Any, progress: Any
) -> None:
    """Starts writing a checkpoint; it is complete once `manager.wait_until_finished()` returns."""
    manager.save(
        step,
        args=ocp.args.Composite(
            parameters=ocp.args.StandardSave(parameters),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.StandardSave(progress),
        ),
    )


def restore(
    manager: ocp.CheckpointManager, step: int, parameters: Parameters, optimizer: Any, progress: Any
) -> tuple[Parameters, Any, Any]:
    """Reads a checkpoint into the shapes and shardings given.

    Returns:
        parameters, optimizer, progress.

    Raises:
        UserError: the checkpoint has other shapes.
    """
    file = manager.directory / str(step)
    try:
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardRestore(parameters),
                optimizer=ocp.args.StandardRestore(optimizer),
                progress=ocp.args.StandardRestore(progress),
            ),
        )
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{file}: does not fit this config and data ({reason}); start another run"
        ) from None
    shapes, found = (jax.tree.map(np.shape, x) for x in (progress, restored["progress"]))
    if shapes != found:
        raise UserError(
            f"{file}: is of a data set or rounds of another size ({found[-1]}, {found[0][0]}); "
            "start another run"
        )
    return restored["parameters"], restored["optimizer"], restored["progress"]


def saved_steps(run: str) -> list[int]:
    """Steps of a run's finished checkpoints, damaged or not, the newest first."""
    folder = epath.Path(run) / "checkpoints"
    names = [x.name for x in folder.iterdir()] if folder.exists() else []
    if in_object_store(folder):  # Orbax writes in place there and marks complete checkpoints
        names = [name for name in names if (folder / name / "commit_success.txt").exists()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def newest_step(run: str, item: str = "") -> int | None:
    """Step of a run's newest intact checkpoint; None if it has none. Warns of each damaged one.

    Args:
        item: the part of a checkpoint that must be intact, such as "parameters"; "": all.
    """
    for step in saved_steps(run):
        checkpoint = epath.Path(run) / "checkpoints" / str(step)
        damage = find_damage(checkpoint, item)
        if damage is None:
            return step
        logging.warning("%s: %s; passing over this checkpoint", checkpoint, damage)
    return None


def set_aside_newer(run: str, step: int | None) -> None:
    """Moves damaged checkpoints newer than `step` to `damaged/`; the run will write them again."""
    for newer in saved_steps(run):
        if step is None or newer > step:
            target = epath.Path(run) / "damaged" / str(newer)
            if target.exists():
                target.rmtree()
            target.parent.mkdir(exist_ok=True)
            (epath.Path(run) / "checkpoints" / str(newer)).rename(target)


def run_directory(path: str) -> epath.Path:
    """The run of a path: a run directory, or one of its checkpoints. Reads nothing."""
    folder = _absolute(path)
    is_checkpoint = folder.parent.name == "checkpoints" and folder.name.isdigit()
    return folder.parent.parent if is_checkpoint else folder


def locate(path: str) -> tuple[epath.Path, int]:
    """Run directory and step of a path: a run (its newest intact checkpoint) or one checkpoint.

    Raises:
        UserError: there is no checkpoint at the path, or its parameters are damaged.
    """
    folder, run = _absolute(path), run_directory(path)
    if folder != run:
        step = int(folder.name) if folder.exists() else None
        if step is not None and (damage := find_damage(folder, "parameters")):
            raise UserError(f"{path}: {damage}; name another checkpoint")
    else:
        step = newest_step(str(folder), "parameters")
    if step is None:
        raise UserError(
            f"{path}: holds no checkpoint; name a run directory, or one of its checkpoints/STEP"
        )
    return run, step


def load_model(path: str, mesh: jax.sharding.Mesh | None = None) -> LoadedModel:
    """The model of a run's newest checkpoint, or of one checkpoint.

    Args:
        path: as `locate` takes it.
        mesh: the parameters are split over its devices; None: all on the first device.

    Raises:
        UserError: as `locate`; or the checkpoint doesn't fit `model.json`.
    """
    run, step = locate(path)
    config = read_architecture(str(run))
    _, target = abstract_model(config, mesh)
    if mesh is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), target
        )
    checkpoint = run / "checkpoints" / str(step)
    folder = checkpoint / "parameters"
    try:
        parameters = ocp.StandardCheckpointer().restore(folder, target)
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: does not hold the parameters of {run / 'model.json'} ({reason}); "
            "name another checkpoint"
        ) from None
    return LoadedModel(config, parameters, load_tokenizer(str(run / "tokenizer")), str(checkpoint))


def save_model(
    path: str, config: InternVLConfig, parameters: Parameters, tokenizer_directory: str
) -> None:
    """Writes a run directory that holds only a model, as step 0.

    It serves as `init_from` and `--checkpoint`.
    """
    write_architecture(path, config)
    copy_tokenizer(tokenizer_directory, str(epath.Path(path) / "tokenizer"))
    with open_manager(path) as manager:
        save(manager, 0, parameters, {"none": np.zeros(())}, {"none": np.zeros(())})


def _absolute(path: Any) -> epath.Path:
    """The path as Orbax wants it; `resolve` alone would take gs:// for a folder on this disk."""
    return epath.Path(path) if in_object_store(path) else epath.Path(path).resolve()
