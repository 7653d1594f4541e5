"""Checkpoints of a training run, written by Orbax.

A run directory holds `model.json` (the architecture), `tokenizer/` and `checkpoints/STEP/`, each of them with
`parameters`, `optimizer`, `progress` (what decides the next batches: arrays on the host) and `checksums.txt`. A step's
directory gets its final name once it is whole; one that has been damaged since is passed over.
"""

import dataclasses
import json
import logging
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx, traverse_util

from aesthetic_jax.checkpoints.integrity import find_damage, write_checksums
from aesthetic_jax.data.tokenizer import copy_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.sharding import parameter_shardings


def abstract_model(config: InternVLConfig) -> tuple[nnx.GraphDef, dict]:
    """Graph and parameter shapes of a model, without computing anything."""
    graph, state = nnx.split(nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0))))
    return graph, nnx.to_pure_dict(state)


def write_architecture(run: str, config: InternVLConfig) -> None:
    """Writes `model.json`."""
    folder = epath.Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_architecture(run: str) -> InternVLConfig:
    """Reads `model.json`."""
    file = epath.Path(run) / "model.json"
    try:
        fields = json.loads(file.read_text())
        vision, text = VisionConfig(**fields.pop("vision")), TextConfig(**fields.pop("text"))
        return InternVLConfig(vision, text, **fields)
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; name a run directory or one of its checkpoints") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: is no model description ({error}); restore the file that the run wrote") from None


def _absolute(path: Any) -> epath.Path:
    """The path as Orbax wants it; `resolve` alone would take gs:// for a folder on this disk."""
    return epath.Path(path) if in_object_store(path) else epath.Path(path).resolve()


def open_manager(run: str, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; `keep` of the newest are kept, None: all. What a kill left unfinished is removed."""
    folder = _absolute(epath.Path(run) / "checkpoints")

    def add_checksums() -> None:  # Orbax calls it with all files written, before the final name
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


def save(manager: ocp.CheckpointManager, step: int, parameters: dict, optimizer: Any, progress: Any) -> None:
    """Starts writing one checkpoint; it is whole once `manager.wait_until_finished()` returns."""
    manager.save(
        step,
        args=ocp.args.Composite(
            parameters=ocp.args.StandardSave(parameters),
            optimizer=ocp.args.StandardSave(optimizer),
            progress=ocp.args.StandardSave(progress),
        ),
    )


def restore(manager: ocp.CheckpointManager, step: int, parameters: dict, optimizer: Any, progress: Any) -> tuple:
    """Reads one checkpoint into the shapes given; returns (parameters, optimizer, progress).

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
        raise UserError(f"{file}: does not go with this config and data ({reason}); begin another run") from None
    shapes, found = (jax.tree.map(np.shape, x) for x in (progress, restored["progress"]))
    if shapes != found:
        raise UserError(
            f"{file}: is of a data set or rounds of another size ({found[-1]}, {found[0][0]}); begin another run"
        )
    return restored["parameters"], restored["optimizer"], restored["progress"]


def saved_steps(run: str) -> list[int]:
    """Steps of a run's finished checkpoints, damaged or not, the newest first."""
    folder = epath.Path(run) / "checkpoints"
    names = [x.name for x in folder.iterdir()] if folder.exists() else []
    if in_object_store(folder):  # Orbax writes in place and marks what is whole
        names = [name for name in names if (folder / name / "commit_success.txt").exists()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def newest_step(run: str, item: str = "") -> int | None:
    """Step of a run's newest whole checkpoint; None if it has none. Warns of each damaged one that it passes over.

    Args:
        item: the part of it that must be whole; "": all.
    """
    for step in saved_steps(run):
        checkpoint = epath.Path(run) / "checkpoints" / str(step)
        damage = find_damage(checkpoint, item)
        if damage is None:
            return step
        logging.warning("%s: %s; passing over this checkpoint", checkpoint, damage)
    return None


def set_aside_newer(run: str, step: int | None) -> None:
    """Moves checkpoints newer than `step`, which are damaged, to `damaged/`: the run will write them again."""
    for newer in saved_steps(run):
        if step is None or newer > step:
            target = epath.Path(run) / "damaged" / str(newer)
            if target.exists():
                target.rmtree()
            target.parent.mkdir(exist_ok=True)
            (epath.Path(run) / "checkpoints" / str(newer)).rename(target)


def run_directory(path: str) -> epath.Path:
    """The run that a path means: a run directory, or one of its checkpoints; nothing is looked at."""
    folder = _absolute(path)
    return folder.parent.parent if folder.parent.name == "checkpoints" and folder.name.isdigit() else folder


def locate(path: str) -> tuple[epath.Path, int]:
    """Run directory and step that a path means: a run directory (its newest whole checkpoint) or one checkpoint of it.

    Raises:
        UserError: there is no checkpoint at the path, or its parameters are damaged.
    """
    folder, run = _absolute(path), run_directory(path)
    if folder != run:
        step = int(folder.name) if folder.exists() else None
        if step is not None and (damage := find_damage(folder, "parameters")):
            raise UserError(f"{path}: {damage}; name another checkpoint")
    else:
        step = newest_step(folder, "parameters")
    if step is None:
        raise UserError(f"{path}: holds no checkpoint; name a run directory, or one of its checkpoints/STEP")
    return run, step


class Loaded(NamedTuple):
    """A trained model."""

    architecture: InternVLConfig
    parameters: dict
    tokenizer: str  # directory
    checkpoint: str  # its own path


def load_model(path: str, mesh: jax.sharding.Mesh | None = None) -> Loaded:
    """The model of a run's newest checkpoint, or of one checkpoint.

    Args:
        path: as `locate` takes it.
        mesh: the parameters are split over its devices by `models.sharding.RULES`; None: all on the first device.
    """
    run, step = locate(path)
    config = read_architecture(str(run))
    model = nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))
    whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = {} if mesh is None else parameter_shardings(model, mesh)
    shapes = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    target = traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.get(path, whole))
            for path, x in shapes.items()
        }
    )
    checkpoint = run / "checkpoints" / str(step)
    folder = checkpoint / "parameters"
    try:
        parameters = ocp.StandardCheckpointer().restore(folder, target)
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: does not hold the parameters of {run / 'model.json'} ({reason})") from None
    return Loaded(config, parameters, str(run / "tokenizer"), str(checkpoint))


def save_model(path: str, config: InternVLConfig, parameters: dict, tokenizer_directory: str) -> None:
    """Writes a run directory that holds a model alone, as step 0: something for `init_from` and `--checkpoint`."""
    write_architecture(path, config)
    copy_tokenizer(tokenizer_directory, str(epath.Path(path) / "tokenizer"))
    with open_manager(path) as manager:
        save(manager, 0, parameters, {"none": np.zeros(())}, {"none": np.zeros(())})
