"""The model a run starts from: random, one of our checkpoints, or a Hugging Face directory."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
from etils import epath
from flax import nnx, traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aesthetic_jax.checkpoints.training import abstract_model, load_model, read_architecture, run_directory
from aesthetic_jax.data.pipeline import Encoder
from aesthetic_jax.data.tokenizer import ChatTokenizer, load_tokenizer, train_tokenizer
from aesthetic_jax.models.config import PRESETS, InternVLConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training.mesh import parameter_tree_shardings
from aesthetic_jax.training.state import Parameters, split, trained_parts


def is_hugging_face(path: str) -> bool:
    """Whether a directory holds a Hugging Face checkpoint, as against one of our runs."""
    folder = epath.Path(path)
    return (
        (folder / "config.json").exists() and not (folder / "model.json").exists() and "checkpoints" not in folder.parts
    )


def tokenizer_directory(path: str) -> str:
    """Where the tokenizer files of an `init_from` are."""
    return path if is_hugging_face(path) else str(run_directory(path) / "tokenizer")


def scratch_model(
    config: ConfigDict, texts: Callable[[], Iterable[str]], mesh: Mesh
) -> tuple[InternVLConfig, Parameters, ChatTokenizer]:
    """A preset with random parameters, and a tokenizer trained on the run's texts."""
    preset = PRESETS[config.model.preset]
    tokenizer = train_tokenizer(texts(), min(config.model.vocab_size, preset.text.vocab_size))
    text = dataclasses.replace(preset.text, vocab_size=max(tokenizer.size, config.model.vocab_size))
    architecture = _with_overrides(dataclasses.replace(preset, text=text, image_token=tokenizer.image), config)
    return architecture, _fill(architecture, {}, config.seed, mesh), tokenizer


def initial_model(
    config: ConfigDict, texts: Callable[[], Iterable[str]], mesh: Mesh
) -> tuple[InternVLConfig, Parameters, ChatTokenizer]:
    """What `config.init_from` names, with the config's dtype, rematerialisation, attention and LoRA.

    Args:
        config: the run's.
        texts: gives the texts that a model from scratch trains its tokenizer on.
        mesh: that the parameters are split over.

    Returns:
        Architecture, parameters (float32) and tokenizer.
    """
    if not config.init_from:
        return scratch_model(config, texts, mesh)
    if is_hugging_face(config.init_from):
        from aesthetic_jax.checkpoints import huggingface

        architecture = huggingface.read_config(config.init_from)
        shardings = traverse_util.flatten_dict(parameter_tree_shardings(architecture, mesh))
        parameters = huggingface.load_parameters(config.init_from, architecture, shardings=shardings)
        directory = config.init_from
    else:
        architecture, parameters, directory, _ = load_model(config.init_from, mesh)
    architecture = _with_overrides(architecture, config)
    return architecture, _fill(architecture, parameters, config.seed, mesh), load_tokenizer(directory)


def _with_overrides(architecture: InternVLConfig, config: ConfigDict) -> InternVLConfig:
    overrides = {name: config.model[name] for name in ("dtype", "remat", "attention")}
    if config.model.lora_rank:
        overrides |= {"lora_rank": config.model.lora_rank, "lora_alpha": config.model.lora_alpha}
    return dataclasses.replace(architecture, **overrides)


def _fill(architecture: InternVLConfig, parameters: Parameters, seed: int, mesh: Mesh) -> Parameters:
    """The parameters, with random ones where there are none (all of them, or LoRA's); computes no others."""
    given = traverse_util.flatten_dict(parameters)
    shardings = traverse_util.flatten_dict(parameter_tree_shardings(architecture, mesh))
    shardings = traverse_util.unflatten_dict({path: x for path, x in shardings.items() if path not in given})

    @functools.partial(jax.jit, out_shardings=shardings)
    def missing():
        _, state = nnx.split(InternVL(architecture, rngs=nnx.Rngs(seed)))
        flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
        return traverse_util.unflatten_dict({path: x for path, x in flat.items() if path not in given})

    random = traverse_util.flatten_dict(missing())
    return traverse_util.unflatten_dict(random | given)


def make_encoder(config: ConfigDict, architecture: InternVLConfig, tokenizer: ChatTokenizer) -> Encoder:
    """The encoder that a config and an architecture mean."""
    return Encoder(
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


def trained_model(config: ConfigDict, checkpoint: str, mesh: Mesh) -> tuple[nnx.GraphDef, Parameters, Encoder, str]:
    """A trained model to be sampled from on this machine, whatever the run's attention was, and its own path.

    Args:
        config: of the data and the attention.
        checkpoint: as `load_model` takes it.
        mesh: that the parameters are split over.
    """
    loaded = load_model(checkpoint, mesh)
    architecture = dataclasses.replace(loaded.architecture, attention=config.model.attention)
    encoder = make_encoder(config, architecture, load_tokenizer(loaded.tokenizer))
    return abstract_model(architecture)[0], loaded.parameters, encoder, loaded.checkpoint


def config_architecture(config: ConfigDict) -> InternVLConfig:
    """The architecture of a config's model, found without reading its parameters; a preset keeps its own vocabulary."""
    if config.init_from and is_hugging_face(config.init_from):
        from aesthetic_jax.checkpoints import huggingface

        return _with_overrides(huggingface.read_config(config.init_from), config)
    if config.init_from:
        return _with_overrides(read_architecture(str(run_directory(config.init_from))), config)
    return _with_overrides(PRESETS[config.model.preset], config)


def read_encoder(config: ConfigDict) -> Encoder:
    """The encoder of the model that `config.init_from` names, found without its parameters."""
    return make_encoder(config, config_architecture(config), load_tokenizer(tokenizer_directory(config.init_from)))


def describe(config: ConfigDict) -> str:
    """Size of a config's model, found without computing anything."""
    _, shapes = abstract_model(config_architecture(config))
    trained, frozen = split(shapes, **trained_parts(config.model))
    counts = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in (("trained", trained), ("frozen", frozen))
    }
    return (
        f"{sum(counts.values()):,} parameters: {counts['trained']:,} trained, {counts['frozen']:,} frozen; "
        f"float32 parameters {4 * sum(counts.values()) / 2**30:.2f} GiB, AdamW moments {8 * counts['trained'] / 2**30:.2f} GiB"
    )
