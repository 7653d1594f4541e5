"""LoRA matrices as an adapter that PEFT loads on top of the base checkpoint; `huggingface` merges them instead."""

import numpy as np
from flax import traverse_util

from aesthetic_jax.checkpoints.hf_names import adapter_entries
from aesthetic_jax.checkpoints.huggingface import check_free, new_directory, write_json, write_tensors
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig

# The vision tower has modules of some of these names too, hence the pattern in place of PEFT's list.
_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def save_adapter(parameters: dict, config: InternVLConfig, path: str, base: str = "") -> None:
    """Writes adapter_model.safetensors and adapter_config.json; the directory appears once it is whole.

    Args:
        parameters: nested dict of a model's parameters, LoRA's among them; only these are written.
        config: the model's architecture.
        path: directory to make; it must not exist, or be empty.
        base: where PEFT finds the base checkpoint, a directory or a name on the Hub.

    Raises:
        UserError: the path is taken, or the model has no LoRA.
    """
    check_free(path)
    if not config.lora_rank:
        raise UserError(f"{path}: the model was trained without LoRA, so there is no adapter; export it with --to_hf")
    flat = traverse_util.flatten_dict(parameters)
    listed = adapter_entries({path: flat[path].shape for path in sorted(flat)})
    arrays = {entry.path: np.asarray(flat[entry.path]) for entry in listed}
    with new_directory(path) as folder:
        dtypes = {path: x.dtype for path, x in arrays.items()}
        write_tensors(folder / "adapter_model.safetensors", listed, dtypes, lambda path, layer: arrays[path][layer])
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
        write_json(folder / "adapter_config.json", settings)
