"""Writes a model as a Hugging Face checkpoint in the "-hf" layout."""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from aesthetic_jax.checkpoints.hf_config import render_config, token_ids
from aesthetic_jax.checkpoints.hf_names import Entry, entries
from aesthetic_jax.checkpoints.tensor_files import INDEX, WEIGHTS, write_header
from aesthetic_jax.data.tokenizer import END_OF_TEXT, IMAGE_CONTEXT, TURN_END, copy_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import Parameters

_SHARD_BYTES = 5 * 10**9

Path = tuple[str, ...]  # of a parameter, as flatten_dict gives it
GetArray = Callable[[Path, int | None], np.ndarray]  # (path, layer or None) -> array on the host


def save_parameters(
    parameters: Parameters,
    config: InternVLConfig,
    path: str,
    source: str | None = None,
    card: str | None = None,
) -> None:
    """Writes parameters, config.json and the files that go with them; see `save_pretrained`.

    Args:
        parameters: nested dict, on devices or on the host; LoRA's matrices are merged.
        config: the architecture.
        path: directory to make; it must not exist, or be empty.
        source: directory whose tokenizer, processor and generation files are copied.
        card: text of README.md; None: no such file.

    Raises:
        UserError: the path is taken, or the source's tokenizer does not fit the model.
    """
    check_free(path)
    ids = _source_ids(config, source)
    flat: Any = traverse_util.flatten_dict(parameters)
    shapes = {leaf: flat[leaf].shape for leaf in sorted(flat)}  # the same files for any dict order
    dtypes = {leaf: np.dtype(x.dtype) for leaf, x in flat.items()}
    with new_directory(path) as folder:
        _write_weights(
            folder, _split_shards(entries(shapes), dtypes), dtypes, _merged(flat, config)
        )
        if source is not None:
            # The source's own generation_config.json, if it has one, replaces this one.
            generation = {"eos_token_id": ids.get(TURN_END), "pad_token_id": ids.get(END_OF_TEXT)}
            write_json(folder / "generation_config.json", generation)
            copy_tokenizer(source, str(folder))
        dtype = dtypes["language", "embedding"].name
        write_json(folder / "config.json", render_config(config, dtype, ids))
        if card is not None:
            (folder / "README.md").write_text(card)


def check_free(path: str) -> None:
    """Refuses a path that is a file or a non-empty directory."""
    target = epath.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{path}: exists already; name a new directory, or empty this one")


@contextlib.contextmanager
def new_directory(path: str) -> Iterator[epath.Path]:
    """Yields a temporary directory that becomes `path` on success and is removed on failure."""
    target = epath.Path(path)
    partial = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:  # name the path that the user gave
        raise OSError(error.errno, error.strerror, path) from None
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        partial.rmtree()
        raise


def write_json(file: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, indented."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def write_tensors(
    file: epath.Path, listed: list[Entry], dtypes: dict[Path, np.dtype], get_array: GetArray
) -> None:
    """Writes one safetensors file.

    Args:
        file: the file to write.
        listed: its tensors, in order.
        dtypes: dtypes of the parameters.
        get_array: returns a parameter, or one layer of it, on the host.
    """
    with file.open("wb") as stream:
        write_header(stream, [(entry.name, dtypes[entry.path], entry.shape) for entry in listed])
        for entry in listed:
            array = get_array(entry.path, entry.layer)
            stored = np.ascontiguousarray(entry.layout.write(array, entry.shape))
            stream.write(stored.reshape(-1).view(np.uint8).data)


def _source_ids(config: InternVLConfig, source: str | None) -> dict[str, int]:
    """Token ids of a source's tokenizer; checks its image token against the model's."""
    if source is None:
        return {}
    if not epath.Path(source).is_dir():
        raise UserError(f"{source}: no such directory; name the one with the tokenizer's files")
    ids = token_ids(epath.Path(source))
    if ids and ids[IMAGE_CONTEXT] != config.image_token:
        raise UserError(
            f"{source}: its tokenizer's {IMAGE_CONTEXT} is {ids[IMAGE_CONTEXT]}, "
            f"the model's {config.image_token}; name the tokenizer that the model was trained with"
        )
    return ids


def _write_weights(
    folder: epath.Path, shards: list[list[Entry]], dtypes: dict[Path, np.dtype], get_array: GetArray
) -> None:
    """Writes one file, or several with an index."""
    if len(shards) == 1:
        write_tensors(folder / WEIGHTS, shards[0], dtypes, get_array)
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / name, shard, dtypes, get_array)
        weight_map |= {entry.name: name for entry in shard}
    total = sum(_num_bytes(entry, dtypes) for shard in shards for entry in shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _num_bytes(entry: Entry, dtypes: dict[Path, np.dtype]) -> int:
    return int(np.prod(entry.shape)) * dtypes[entry.path].itemsize


def _split_shards(listed: list[Entry], dtypes: dict[Path, np.dtype]) -> list[list[Entry]]:
    """Splits the tensors, in order, into shards of at most _SHARD_BYTES."""
    shards, filled = [[]], 0
    for entry in listed:
        size = _num_bytes(entry, dtypes)
        if shards[-1] and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    return shards


def _merged(flat: dict[Path, Any], config: InternVLConfig) -> GetArray:
    """Makes a function that fetches one parameter, or one layer of it, with LoRA merged into it.

    It keeps the parameter fetched last, so that all its layers leave the device in one transfer.
    """
    fetched: dict[Path, np.ndarray] = {}

    def get_array(path: Path, layer: int | None) -> np.ndarray:
        names = [path, (*path[:-1], "lora_a"), (*path[:-1], "lora_b")]
        names = names if path[-1] == "kernel" and names[1] in flat else names[:1]
        if path not in fetched:
            fetched.clear()
            fetched.update({name: np.asarray(flat[name]) for name in names})
        kernel, *lora = (fetched[name] if layer is None else fetched[name][layer] for name in names)
        if not lora:
            return kernel
        lora_a, lora_b = (x.astype(np.float32) for x in lora)
        update = lora_a @ lora_b * (config.lora_alpha / config.lora_rank)
        return (kernel.astype(np.float32) + update).astype(kernel.dtype)

    return get_array
