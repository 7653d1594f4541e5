"""LoRA matrices as an adapter that PEFT loads on top of the base checkpoint."""

from typing import Any

import numpy as np
from flax import traverse_util

from aesthetic_jax.checkpoints.hf_names import adapter_entries
from aesthetic_jax.checkpoints.hf_write import check_free, new_directory, write_json, write_tensors
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import Parameters

# A pattern in place of PEFT's list of names: some of them occur in the vision tower too.
_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def save_adapter(parameters: Parameters, config: InternVLConfig, path: str, base: str = "") -> None:
    """Writes adapter_model.safetensors and adapter_config.json; the directory appears complete.

    Args:
        parameters: of a model, LoRA's among them; only these are written.
        config: the model's architecture.
        path: directory to make; it must not exist, or be empty.
        base: where PEFT finds the base checkpoint, a directory or a model of the hub.

    Raises:
        UserError: the path is taken, or the model has no LoRA.
    """
    check_free(path)
    if not config.lora_rank:
        raise UserError(
            f"{path}: the model was trained without LoRA, so there is no adapter; use --to_hf"
        )
    flat: Any = traverse_util.flatten_dict(parameters)
    listed = adapter_entries({leaf: flat[leaf].shape for leaf in sorted(flat)})
    arrays = {entry.path: np.asarray(flat[entry.path]) for entry in listed}
    dtypes = {leaf: x.dtype for leaf, x in arrays.items()}
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base or None,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _TARGETS,
    }
    with new_directory(path) as folder:
        file = folder / "adapter_model.safetensors"
        write_tensors(file, listed, dtypes, lambda leaf, layer: arrays[leaf][layer])
        write_json(folder / "adapter_config.json", settings)
