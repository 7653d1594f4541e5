"""InternVL checkpoints as Hugging Face publishes them: safetensors and config.json, in and out."""

import contextlib
import dataclasses
import functools
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx, traverse_util

from aesthetic_jax.checkpoints.hf_config import IMAGE_CONTEXT, parse_config, read_json, render_config, token_ids
from aesthetic_jax.checkpoints.hf_names import HEAD, Entry, entries, is_original, normalise
from aesthetic_jax.checkpoints.tensor_files import DTYPES, StoredTensor, read_header, read_tensor, write_header
from aesthetic_jax.data.tokenizer import END_OF_TEXT, TURN_END, copy_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.sharding import parameter_shardings

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.bin.index.json")
_SHARD_BYTES = 5 * 10**9
_NAMED = 20  # tensors named in an error, of each kind
_ALIGNMENT = 64  # bytes; JAX on a CPU takes an array over without a copy if it starts at a multiple

Path = tuple[str, ...]


def load_pretrained(path: str, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None) -> InternVL:
    """Opens an InternVL 2.5 or 3 checkpoint with a Qwen2 language model.

    Args:
        path: directory with config.json and model.safetensors, or its shards and index; in OpenGVLab's layout or
            transformers' ("-hf"). Nothing is downloaded, nothing pickled is opened.
        dtype: "float32" or "bfloat16", of parameters and activations.
        mesh: the parameters are split over its devices by `models.sharding.RULES`; None: all on the first device.

    Raises:
        UserError: the directory holds no such checkpoint, or not all of one, or the mesh doesn't fit it.
    """
    config = dataclasses.replace(read_config(path), dtype=dtype)
    model = _abstract(config)
    shardings = None if mesh is None else parameter_shardings(model, mesh)
    return nnx.merge(nnx.graphdef(model), load_parameters(path, config, dtype, shardings))


def save_pretrained(model: InternVL, path: str, source: str | None = None) -> None:
    """Writes a model in the "-hf" layout, which transformers, vLLM and LMDeploy open.

    Tensors keep the parameters' own dtype; LoRA is merged into them. The directory appears once it is whole.

    Args:
        model: the model.
        path: directory to make; it must not exist, or be empty.
        source: directory whose tokenizer, processor, generation and chat-template files go along.

    Raises:
        UserError: the path is taken, or the source holds no tokenizer for this model.
    """
    save_parameters(nnx.to_pure_dict(nnx.state(model, nnx.Param)), model.config, path, source)


def read_config(path: str) -> InternVLConfig:
    """The architecture of a checkpoint, read from its config.json, tokenizer files and tensors' headers."""
    folder = epath.Path(path)
    config = parse_config(folder)
    tied = HEAD not in _tensors(folder)
    if tied and not config.text.tied_head:
        logging.warning("%s: holds no head of its own; it is tied to the embedding", path)
    return dataclasses.replace(config, text=dataclasses.replace(config.text, tied_head=tied))


def load_parameters(
    path: str,
    config: InternVLConfig,
    dtype: str = "float32",
    shardings: dict[Path, jax.sharding.Sharding] | None = None,
) -> dict:
    """The parameters of a checkpoint as a nested dict, without LoRA's.

    Tensors are read one at a time into a parameter's final array, so the host holds little more than it keeps. Of a split
    parameter each host reads the rows of the stored tensors that its devices need; what other axes split is cut from these.

    Args:
        path: directory of the checkpoint.
        config: its architecture, as `read_config` gives it.
        dtype: "float32" or "bfloat16".
        shardings: where each parameter is to live, by its path; None: on the first device.

    Raises:
        UserError: a file is missing or broken; tensors are missing, unexpected or misshapen, all named in one message.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype {dtype!r} is not supported; use float32 or bfloat16")
    tensors = _tensors(epath.Path(path))
    shapes = {path: x.shape for path, x in _flat_shapes(config).items()}
    wanted: dict[Path, list[Entry]] = {}
    for entry in entries(shapes, is_original(tensors)):
        wanted.setdefault(entry.path, []).append(entry)
    _check_tensors(path, tensors, [entry for group in wanted.values() for entry in group])
    parameters = {}
    # The largest tensors first: their copies come on top of little then.
    for leaf in sorted(wanted, key=lambda leaf: -np.prod(wanted[leaf][0].shape)):
        shape = shapes[leaf]
        read = functools.cache(functools.partial(_read_block, wanted[leaf], tensors, jnp.dtype(dtype)))
        if shardings is None:
            parameters[leaf] = jax.device_put(read(tuple((0, size) for size in shape)))
        else:

            def block(index, shape=shape, read=read):
                return read(tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True)))

            parameters[leaf] = jax.make_array_from_callback(shape, shardings[leaf], block)
    return traverse_util.unflatten_dict(parameters)


def save_parameters(parameters: dict, config: InternVLConfig, path: str, source: str | None = None) -> None:
    """`save_pretrained` for a nested dict of parameters; see there."""
    check_free(path)
    ids = _source_ids(config, source)
    flat = traverse_util.flatten_dict(parameters)
    shapes = {path: flat[path].shape for path in sorted(flat)}  # one order of tensors, however the dict was made
    dtypes = {path: np.dtype(x.dtype) for path, x in flat.items()}
    shards = _cut(entries(shapes), dtypes)
    with new_directory(path) as folder:
        weight_map = {}
        arrays = _merged(flat, config)
        for number, shard in enumerate(shards, 1):
            name = _SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            write_tensors(folder / name, shard, dtypes, arrays)
            weight_map |= {entry.name: name for entry in shard}
        if len(shards) > 1:
            total = sum(_bytes(entry, dtypes) for shard in shards for entry in shard)
            write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        generation = {"eos_token_id": ids.get(TURN_END), "pad_token_id": ids.get(END_OF_TEXT)}
        if source is not None:
            write_json(folder / "generation_config.json", generation)  # the source's own, if any, takes its place
            copy_tokenizer(source, str(folder))
        dtype = dtypes["language", "embedding"].name
        write_json(folder / "config.json", render_config(config, dtype, ids))


def check_free(path: str) -> None:
    """Refuses a path to write to that is a file, or a directory with something in it."""
    target = epath.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{path}: exists already; name a new directory, or empty this one")


def write_tensors(
    file: epath.Path,
    listed: list[Entry],
    dtypes: dict[Path, np.dtype],
    arrays: Callable[[Path, int | None], np.ndarray],
) -> None:
    """Writes one safetensors file.

    Args:
        file: to write.
        listed: its tensors, in order.
        dtypes: of the parameters.
        arrays: gives a parameter, or one layer of it, on the host.
    """
    with file.open("wb") as stream:
        write_header(stream, [(entry.name, dtypes[entry.path], entry.shape) for entry in listed])
        for entry in listed:
            stored = np.ascontiguousarray(entry.layout.write(arrays(entry.path, entry.layer), entry.shape))
            stream.write(stored.reshape(-1).view(np.uint8).data)


def _abstract(config: InternVLConfig) -> InternVL:
    return nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))


def _flat_shapes(config: InternVLConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(_abstract(config), nnx.Param)))


def _tensors(folder: epath.Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, by its name with on-disk prefixes."""
    tensors = {}
    for file in _weight_files(folder):
        for name, tensor in read_header(file).items():
            canonical = normalise(name)
            if canonical in tensors:
                raise UserError(f"{file}: holds {canonical} a second time, as {name}; keep one of the two")
            if canonical is not None:
                tensors[canonical] = tensor
    return tensors


def _weight_files(folder: epath.Path) -> list[epath.Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such directory; name that of a Hugging Face checkpoint")
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    index = folder / _INDEX
    if not index.exists():
        if pickles := sorted({file.name for pattern in _PICKLES for file in folder.glob(pattern)}):
            raise UserError(
                f"{folder}: holds a pickle checkpoint ({pickles[0]}), which can run any code when it is opened; "
                "get the checkpoint as safetensors"
            )
        raise UserError(f"{folder}: has no {_SINGLE} and no {_INDEX}; copy the checkpoint's weights there")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; copy the checkpoint's file again")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        # A name with a separator could lead anywhere on this machine.
        if "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index}: weight_map names {name!r}, which is no .safetensors file beside it; correct the index"
            )
    return [folder / name for name in names]


def _check_tensors(path: str, tensors: dict[str, StoredTensor], wanted: list[Entry]) -> None:
    shapes = {entry.name: entry.shape for entry in wanted}
    missing = [name for name in shapes if name not in tensors]
    unexpected = [name for name in tensors if name not in shapes]
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    mistyped = [
        f"{name} is {tensors[name].dtype}" for name in shapes if name in tensors and tensors[name].dtype not in DTYPES
    ]
    parts = []
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshapen", misshapen),
        ("of a type that is no float", mistyped),
    ):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{len(names)} {what}: {', '.join(names[:_NAMED])}{more}")
    if parts:
        raise UserError(f"{path}: tensors and config.json disagree; {'; '.join(parts)}; copy the checkpoint again")


def _read_block(
    listed: list[Entry], tensors: dict[str, StoredTensor], dtype: np.dtype, bounds: tuple[tuple[int, int], ...]
) -> np.ndarray:
    """The part of one parameter within bounds (start, stop) along each axis; `listed` are the tensors that hold it."""
    array = _aligned(tuple(stop - start for start, stop in bounds), dtype)
    for entry in listed:
        target, within = array, bounds
        if entry.layer is not None:
            (first, end), *within = bounds
            if not first <= entry.layer < end:
                continue
            target = array[entry.layer - first]
        stored = tensors[entry.name]
        stored = stored if entry.part is None else stored.third(entry.part)
        cut = [slice(*bound) for bound in within]
        if (axis := entry.layout.row_axis) is not None:
            stored, cut[axis] = stored.rows(*within[axis]), slice(None)
        _copy(entry.layout.read(read_tensor(stored))[tuple(cut)], target)
    return array


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    """Casts and copies; a matrix in strips of 16 columns, which keeps a transposed one's reads and writes in cache."""
    if source.ndim != 2:
        target[...] = source
        return
    for start in range(0, source.shape[1], 16):
        strip = source[:, start : start + 16]
        target[:, start : start + 16] = strip.astype(target.dtype, order="K", copy=False)


def _source_ids(config: InternVLConfig, source: str | None) -> dict[str, int]:
    """Token ids of a source's tokenizer, checked against the model's image token."""
    if source is None:
        return {}
    if not epath.Path(source).is_dir():
        raise UserError(f"{source}: there is no such directory; name the one that holds the tokenizer's files")
    ids = token_ids(epath.Path(source))
    if ids and ids[IMAGE_CONTEXT] != config.image_token:
        raise UserError(
            f"{source}: its tokenizer's {IMAGE_CONTEXT} is {ids[IMAGE_CONTEXT]}, the model's {config.image_token}; "
            "name the tokenizer that the model was trained with"
        )
    return ids


def _bytes(entry: Entry, dtypes: dict[Path, np.dtype]) -> int:
    return int(np.prod(entry.shape)) * dtypes[entry.path].itemsize


def _cut(listed: list[Entry], dtypes: dict[Path, np.dtype]) -> list[list[Entry]]:
    """Cuts the tensors, in order, into shards of at most _SHARD_BYTES."""
    shards, filled = [[]], 0
    for entry in listed:
        size = _bytes(entry, dtypes)
        if shards[-1] and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    return shards


def _merged(flat: dict[Path, Any], config: InternVLConfig) -> Callable[[Path, int | None], np.ndarray]:
    """A function that gives one parameter, or one layer of it, on the host, LoRA added to it.

    It keeps the last parameter it fetched: a whole stack comes from the device at once.
    """
    fetched: dict[Path, np.ndarray] = {}

    def get(path: Path, layer: int | None) -> np.ndarray:
        names = [path, (*path[:-1], "lora_a"), (*path[:-1], "lora_b")]
        names = names if path[-1] == "kernel" and names[1] in flat else names[:1]
        if path not in fetched:
            fetched.clear()
            fetched.update({name: np.asarray(flat[name]) for name in names})
        kernel, *update = (fetched[name] if layer is None else fetched[name][layer] for name in names)
        if not update:
            return kernel
        low, high = (x.astype(np.float32) for x in update)
        return (kernel.astype(np.float32) + low @ high * (config.lora_alpha / config.lora_rank)).astype(kernel.dtype)

    return get


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[epath.Path]:
    """A directory under a passing name, which becomes `path` if all goes well and is removed if not."""
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        partial.rmtree()
        raise


def write_json(file: epath.Path, content: dict) -> None:
    """Writes a JSON object, indented."""
    file.write_text(json.dumps(content, indent=2) + "\n")
