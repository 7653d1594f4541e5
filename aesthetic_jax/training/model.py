"""The model of a config or a checkpoint: random, from a run, or from Hugging Face."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
from etils import epath
from flax import nnx, traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aesthetic_jax.checkpoints import hf_read
from aesthetic_jax.checkpoints.hub import local_checkpoint
from aesthetic_jax.checkpoints.runs import (
    LoadedModel,
    load_model,
    read_architecture,
    run_directory,
)
from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from aesthetic_jax.models.config import PRESETS, InternVLConfig
from aesthetic_jax.models.internvl import InternVL, Parameters, abstract_model
from aesthetic_jax.training.provenance import read_run_config
from aesthetic_jax.training.state import split, split_settings

PROMPT_SETTINGS = ("system_prompt", "max_tiles")  # fields of config.data that shape a prompt


def is_hugging_face(path: str) -> bool:
    """Whether a directory holds a Hugging Face checkpoint rather than one of our runs."""
    folder = epath.Path(path)
    return (
        (folder / "config.json").exists()
        and not (folder / "model.json").exists()
        and "checkpoints" not in folder.parts
    )


def tokenizer_directory(init_from: str) -> str:
    """Where the tokenizer files of an `init_from` are; downloads a model of the hub."""
    path = local_checkpoint(init_from)
    return path if is_hugging_face(path) else str(run_directory(path) / "tokenizer")


def initial_model(
    config: ConfigDict, tokenizer_texts: Callable[[], Iterable[str]], mesh: Mesh
) -> LoadedModel:
    """The model of `config.init_from`, with the config's dtype, remat, attention and LoRA.

    Parameters are float32 and split over the mesh.

    Args:
        tokenizer_texts: gives the texts that a model from scratch trains its tokenizer on.
    """
    if not config.init_from:
        return _scratch_model(config, tokenizer_texts, mesh)
    path = local_checkpoint(config.init_from)
    if is_hugging_face(path):
        architecture = hf_read.read_config(path)
        parameters = hf_read.load_parameters(path, architecture, mesh=mesh)
        tokenizer = load_tokenizer(path)
    else:
        architecture, parameters, tokenizer, path = load_model(path, mesh)
    architecture = _with_overrides(architecture, config)
    parameters = _add_random(architecture, parameters, config.seed, mesh)
    return LoadedModel(architecture, parameters, tokenizer, path)


def _scratch_model(
    config: ConfigDict, tokenizer_texts: Callable[[], Iterable[str]], mesh: Mesh
) -> LoadedModel:
    """A preset with random parameters, and a tokenizer trained on the run's texts."""
    preset = PRESETS[config.model.preset]
    vocab_size = min(config.model.vocab_size, preset.text.vocab_size)
    tokenizer = train_tokenizer(tokenizer_texts(), vocab_size)
    text = dataclasses.replace(preset.text, vocab_size=max(tokenizer.size, config.model.vocab_size))
    architecture = dataclasses.replace(preset, text=text, image_token=tokenizer.image)
    architecture = _with_overrides(architecture, config)
    return LoadedModel(
        architecture, _add_random(architecture, {}, config.seed, mesh), tokenizer, ""
    )


def _with_overrides(architecture: InternVLConfig, config: ConfigDict) -> InternVLConfig:
    overrides = {name: config.model[name] for name in ("dtype", "remat", "attention")}
    if config.model.lora_rank:
        overrides |= {name: config.model[name] for name in ("lora_rank", "lora_alpha")}
    return dataclasses.replace(architecture, **overrides)


def _add_random(
    architecture: InternVLConfig, parameters: Parameters, seed: int, mesh: Mesh
) -> Parameters:
    """Adds random values for missing parameters (all of them, or LoRA's); computes no others."""
    given = traverse_util.flatten_dict(parameters)
    shapes: Any = traverse_util.flatten_dict(abstract_model(architecture, mesh)[1])
    missing = {path: shapes[path].sharding for path in shapes if path not in given}

    @functools.partial(jax.jit, out_shardings=traverse_util.unflatten_dict(missing))
    def initialize():
        _, state = nnx.split(InternVL(architecture, rngs=nnx.Rngs(seed)))
        flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
        return traverse_util.unflatten_dict({path: flat[path] for path in flat if path in missing})

    return traverse_util.unflatten_dict(traverse_util.flatten_dict(initialize()) | given)


def trained_model(config: ConfigDict, checkpoint: str, mesh: Mesh) -> LoadedModel:
    """A trained model to sample from, with the config's attention back end, not the run's.

    Args:
        checkpoint: as `load_model` takes it.
    """
    loaded = load_model(checkpoint, mesh)
    architecture = dataclasses.replace(loaded.architecture, attention=config.model.attention)
    return loaded._replace(architecture=architecture)


def adopt_prompt_settings(config: ConfigDict, checkpoint: str) -> str | None:
    """Gives a config the prompt settings of a checkpoint's run, so that prompts are as in training.

    Args:
        config: changed in place.
        checkpoint: a run directory or one of its checkpoints; one made by `convert` has no config
            of its own, and changes nothing.

    Returns:
        A line that names the fields that differed; None where none did.
    """
    run = run_directory(checkpoint)
    data = read_run_config(str(run)).get("data", {})
    differing = [x for x in PROMPT_SETTINGS if x in data and data[x] != config.data[x]]
    values = [f"config.data.{x} {data[x]!r} instead of {config.data[x]!r}" for x in differing]
    with config.unlocked():
        config.data.update({x: data[x] for x in differing})
    return f"prompts are those of {run}: {', '.join(values)}" if values else None


def make_preprocessor(
    config: ConfigDict, architecture: InternVLConfig, tokenizer: ChatTokenizer
) -> Preprocessor:
    """The preprocessor of a config and an architecture."""
    return Preprocessor(
        tokenizer=tokenizer,
        tile_size=architecture.vision.image_size,
        tokens_per_tile=architecture.tokens_per_tile,
        max_images=config.data.max_images,
        max_tiles=config.data.max_tiles,
        prompt_buckets=tuple(config.data.prompt_buckets),
        completion_buckets=tuple(config.data.completion_buckets),
        system=config.data.system_prompt,
        final_newline=config.data.final_newline,
    )


def config_architecture(config: ConfigDict) -> InternVLConfig:
    """The architecture of a config's model; reads no parameters. A preset keeps its vocabulary."""
    if not config.init_from:
        return _with_overrides(PRESETS[config.model.preset], config)
    path = local_checkpoint(config.init_from)
    if is_hugging_face(path):
        return _with_overrides(hf_read.read_config(path), config)
    return _with_overrides(read_architecture(str(run_directory(path))), config)


def read_preprocessor(config: ConfigDict) -> Preprocessor:
    """The preprocessor of the model that `config.init_from` names; reads no parameters."""
    architecture = config_architecture(config)  # first: its error says what a run directory lacks
    tokenizer = load_tokenizer(tokenizer_directory(config.init_from))
    return make_preprocessor(config, architecture, tokenizer)


def describe(config: ConfigDict) -> str:
    """Size of a config's model in one line; computes nothing."""
    _, parameters = abstract_model(config_architecture(config))
    trained, frozen = split(parameters, **split_settings(config.model))
    num_trained, num_frozen = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, frozen)
    )
    return (
        f"{num_trained + num_frozen:,} parameters: {num_trained:,} trained, {num_frozen:,} frozen; "
        f"float32 parameters {4 * (num_trained + num_frozen) / 2**30:.2f} GiB, "
        f"AdamW moments {8 * num_trained / 2**30:.2f} GiB"
    )
