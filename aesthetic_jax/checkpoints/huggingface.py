"""InternVL checkpoints as Hugging Face publishes them: `load_pretrained` and `save_pretrained`."""

import dataclasses

import jax
from flax import nnx

from aesthetic_jax.checkpoints.hf_read import load_parameters, read_config
from aesthetic_jax.checkpoints.hf_write import save_parameters
from aesthetic_jax.checkpoints.hub import local_checkpoint
from aesthetic_jax.models.internvl import InternVL, abstract_model


def load_pretrained(
    path: str, dtype: str = "float32", mesh: jax.sharding.Mesh | None = None
) -> InternVL:
    """Loads an InternVL 2.5 or 3 checkpoint with a Qwen2 language model.

    Args:
        path: a directory with config.json and safetensors weights, in OpenGVLab's layout or in
            transformers' ("-hf"); or a model of the Hugging Face hub, `OWNER/NAME` or
            `hf://OWNER/NAME[@REVISION]`, which is downloaded. No pickle and no code is opened.
        dtype: "float32" or "bfloat16", of parameters and activations.
        mesh: splits the parameters by `models.sharding.RULES`; None: the first device holds all.

    Raises:
        UserError: no such model, the checkpoint is not supported, damaged or incomplete, or the
            mesh does not fit it.
    """
    folder = local_checkpoint(path)
    config = dataclasses.replace(read_config(folder), dtype=dtype)
    graph, _ = abstract_model(config)
    return nnx.merge(graph, load_parameters(folder, config, dtype, mesh))


def save_pretrained(model: InternVL, path: str, source: str | None = None) -> None:
    """Writes a model in the "-hf" layout, which transformers, vLLM and LMDeploy open.

    Tensors keep the parameters' own dtype; LoRA is merged into them. The directory appears only
    once it is complete.

    Args:
        model: the model.
        path: directory to make; it must not exist, or be empty.
        source: directory whose tokenizer, processor, generation and chat-template files are copied.

    Raises:
        UserError: the path is taken, or the source's tokenizer does not fit the model.
    """
    save_parameters(nnx.to_pure_dict(nnx.state(model, nnx.Param)), model.config, path, source)
