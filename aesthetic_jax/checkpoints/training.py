"""Checkpoints of a training run, written by Orbax.

A run directory holds `model.json` (the architecture), `tokenizer/` and `checkpoints/STEP/`, each of them with
`parameters`, `optimizer` and `progress` (what decides the next batches: arrays on the host). A step's directory gets its
final name once it is whole.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from aesthetic_jax.data.tokenizer import copy_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL


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
    return epath.Path(path) if "://" in str(path) else epath.Path(path).resolve()


def open_manager(run: str, keep: int | None = None) -> ocp.CheckpointManager:
    """The manager of a run's checkpoints; `keep` of the newest are kept, None: all."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, step_prefix=None, create=True)
    return ocp.CheckpointManager(_absolute(epath.Path(run) / "checkpoints"), options=options)


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
    """Reads one checkpoint into the shapes given; returns (parameters, optimizer, progress)."""
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            parameters=ocp.args.StandardRestore(parameters),
            optimizer=ocp.args.StandardRestore(optimizer),
            progress=ocp.args.StandardRestore(progress),
        ),
    )
    return restored["parameters"], restored["optimizer"], restored["progress"]


def newest_step(run: str) -> int | None:
    """Step of a run's newest whole checkpoint; None if it has none."""
    folder = epath.Path(run) / "checkpoints"
    names = [x.name for x in folder.iterdir()] if folder.exists() else []
    if "://" in str(folder):  # an object store can't rename: Orbax writes in place and marks what is whole
        names = [name for name in names if (folder / name / "commit_success.txt").exists()]
    return max((int(name) for name in names if name.isdigit()), default=None)


def locate(path: str) -> tuple[epath.Path, int]:
    """Run directory and step that a path means: a run directory (its newest checkpoint) or one checkpoint of it.

    Raises:
        UserError: there is no checkpoint at the path.
    """
    folder = _absolute(path)
    if folder.parent.name == "checkpoints" and folder.name.isdigit():
        run, step = folder.parent.parent, int(folder.name) if folder.exists() else None
    else:
        run, step = folder, newest_step(folder)
    if step is None:
        raise UserError(f"{path}: holds no checkpoint; name a run directory, or one of its checkpoints/STEP")
    return run, step


def load_model(path: str) -> tuple[InternVLConfig, dict, str]:
    """Architecture, parameters and tokenizer directory of a run's newest checkpoint, or of one checkpoint."""
    run, step = locate(path)
    config = read_architecture(str(run))
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract_model(config)[1]
    )
    folder = run / "checkpoints" / str(step) / "parameters"
    try:
        parameters = ocp.StandardCheckpointer().restore(folder, target)
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder}: does not hold the parameters of {run / 'model.json'} ({reason})") from None
    return config, parameters, str(run / "tokenizer")


def save_model(path: str, config: InternVLConfig, parameters: dict, tokenizer_directory: str) -> None:
    """Writes a run directory that holds a model alone, as step 0: something for `init_from` and `--checkpoint`."""
    write_architecture(path, config)
    copy_tokenizer(tokenizer_directory, str(epath.Path(path) / "tokenizer"))
    with open_manager(path) as manager:
        save(manager, 0, parameters, {"none": np.zeros(())}, {"none": np.zeros(())})
