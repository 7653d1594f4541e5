"""Reads a Hugging Face checkpoint: its architecture, and its parameters one tensor at a time."""

import dataclasses
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from aesthetic_jax.checkpoints.hf_config import parse_config, read_json
from aesthetic_jax.checkpoints.hf_names import HEAD, Entry, entries, is_original, normalise
from aesthetic_jax.checkpoints.tensor_files import (
    DTYPES,
    INDEX,
    WEIGHTS,
    StoredTensor,
    read_header,
    read_tensor,
)
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import Parameters, abstract_model

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")
_MAX_NAMES = 20  # at most so many tensors of each kind in an error
_ALIGNMENT = 64  # bytes; a CPU device adopts a NumPy array without a copy at such an address
_STRIP = 16  # columns copied at once

Bounds = tuple[tuple[int, int], ...]  # (start, stop) along each axis


def read_config(path: str) -> InternVLConfig:
    """Reads the architecture from config.json, the tokenizer files and the headers of the weights.

    Raises:
        UserError: a file is missing or broken, or the model is not one that this package computes.
    """
    folder = epath.Path(path)
    config = parse_config(folder)
    tied = HEAD not in _find_tensors(folder)
    if tied and not config.text.tied_head:
        logging.warning("%s: has no tensor %s; the head is tied to the embedding", path, HEAD)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied_head=tied))


def load_parameters(
    path: str,
    config: InternVLConfig,
    dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> Parameters:
    """Loads the parameters of a checkpoint, without LoRA's, which no checkpoint holds.

    Tensors are read one at a time straight into their parameter's final array, so that host
    memory stays close to the size of the parameters. On a mesh each host reads only the rows that
    its devices need.

    Args:
        path: directory of the checkpoint.
        config: its architecture, from `read_config`.
        dtype: "float32" or "bfloat16".
        mesh: splits the parameters by `models.sharding.RULES`; None: the first device holds all.

    Raises:
        UserError: a file is missing or broken; or tensors are missing, unexpected or of the wrong
            shape, all named in one message.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is not supported; use float32 or bfloat16")
    tensors = _find_tensors(epath.Path(path))
    targets: Any = traverse_util.flatten_dict(abstract_model(config, mesh)[1])
    shapes = {leaf: target.shape for leaf, target in targets.items()}
    expected: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries(shapes, is_original(tensors)):
        expected.setdefault(entry.path, []).append(entry)
    _check_tensors(path, tensors, [entry for group in expected.values() for entry in group])
    parameters = {}
    # Largest first: the temporary copy of a large tensor then adds to little else.
    for leaf in sorted(expected, key=lambda leaf: -np.prod(expected[leaf][0].shape)):
        sharding = None if mesh is None else targets[leaf].sharding
        parameters[leaf] = _load_parameter(
            expected[leaf], tensors, shapes[leaf], jnp.dtype(dtype), sharding
        )
    return traverse_util.unflatten_dict(parameters)


def _find_tensors(folder: epath.Path) -> dict[str, StoredTensor]:
    """Finds every tensor of a checkpoint, by its name with the prefixes used on disk."""
    tensors = {}
    for file in _weight_files(folder):
        for name, tensor in read_header(file).items():
            canonical = normalise(name)
            if canonical in tensors:
                raise UserError(
                    f"{file}: holds {canonical} a second time, as {name}; remove one of the two"
                )
            if canonical is not None:
                tensors[canonical] = tensor
    return tensors


def _weight_files(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; name that of a Hugging Face checkpoint")
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        if pickles := sorted({file.name for pattern in _PICKLES for file in folder.glob(pattern)}):
            raise UserError(
                f"{folder}: holds a pickle checkpoint ({pickles[0]}), which can run any code when "
                "it is opened; get the checkpoint as safetensors"
            )
        raise UserError(f"{folder}: has neither {WEIGHTS} nor {INDEX}; copy the weights there")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; copy the checkpoint's file again")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # A name with a path separator could point to any file on this machine.
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index}: weight_map names {name!r}, which is no .safetensors file beside it; "
                "correct the index"
            )
    return [folder / name for name in names]


def _check_tensors(path: str, tensors: dict[str, StoredTensor], expected: list[Entry]) -> None:
    """Refuses a checkpoint whose tensors are not exactly those expected, naming all that differ."""
    shapes = {entry.name: entry.shape for entry in expected}
    present = {name: tensors[name] for name in shapes if name in tensors}
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "unexpected": [name for name in tensors if name not in shapes],
        "of the wrong shape": [
            f"{name} is {list(tensor.shape)}, not {list(shapes[name])}"
            for name, tensor in present.items()
            if tensor.shape != shapes[name]
        ],
        "of a type that is no float": [
            f"{name} is {tensor.dtype}"
            for name, tensor in present.items()
            if tensor.dtype not in DTYPES
        ],
    }
    parts = []
    for kind, names in problems.items():
        if names:
            more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:_MAX_NAMES])}{more}")
    if parts:
        raise UserError(
            f"{path}: tensors and config.json disagree; {'; '.join(parts)}; "
            "copy the checkpoint again"
        )


def _load_parameter(
    sources: list[Entry],
    tensors: dict[str, StoredTensor],
    shape: tuple[int, ...],
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> jax.Array:
    """Reads one parameter from the tensors in `sources` and puts it on its devices."""

    @functools.cache  # devices that replicate a block share one read
    def read(bounds: Bounds) -> np.ndarray:
        return _read_block(sources, tensors, dtype, bounds)

    def read_shard(index: Any) -> np.ndarray:  # a slice along each axis
        return read(tuple(cut.indices(n)[:2] for cut, n in zip(index, shape, strict=True)))

    if sharding is None:
        return jax.device_put(read(tuple((0, size) for size in shape)))
    return jax.make_array_from_callback(shape, sharding, read_shard)


def _read_block(
    sources: list[Entry],
    tensors: dict[str, StoredTensor],
    dtype: np.dtype,
    bounds: Bounds,
) -> np.ndarray:
    """Reads the block of one parameter that lies within bounds."""
    block = _empty_aligned(tuple(stop - start for start, stop in bounds), dtype)
    for entry in sources:
        target, inner_bounds = block, bounds
        if entry.layer is not None:
            (first, end), *inner_bounds = bounds
            if not first <= entry.layer < end:
                continue
            target = block[entry.layer - first]
        stored = tensors[entry.name]
        stored = stored if entry.part is None else stored.third(entry.part)
        cut = [slice(*bound) for bound in inner_bounds]
        if (axis := entry.layout.row_axis) is not None:
            stored, cut[axis] = stored.rows(*inner_bounds[axis]), slice(None)
        _copy(entry.layout.read(read_tensor(stored))[tuple(cut)], target)
    return block


def _empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that starts at a multiple of _ALIGNMENT bytes."""
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Casts and copies; a matrix in strips of columns, since a transposed one misses the cache."""
    if source.ndim != 2:
        target[...] = source
        return
    for start in range(0, source.shape[1], _STRIP):
        strip = source[:, start : start + _STRIP]
        target[:, start : start + _STRIP] = strip.astype(target.dtype, order="K", copy=False)
