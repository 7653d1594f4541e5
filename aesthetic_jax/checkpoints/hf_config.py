"""config.json of a Hugging Face InternVL checkpoint: reads both layouts, writes the "-hf" one."""

import json
from typing import Any

from etils import epath

from aesthetic_jax.data.tokenizer import END_OF_TEXT, IMAGE_CONTEXT, TURN_END
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig

# The model implements only these values; a checkpoint with others would compute wrong results.
_FIXED = {
    "ps_version": "v2",
    "select_layer": -1,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
}
_FIXED_VISION = {
    "hidden_act": "gelu",
    "num_channels": 3,
    "use_absolute_position_embeddings": True,
    "use_mean_pooling": True,
    "use_mask_token": False,
}
_FIXED_TEXT = {"hidden_act": "silu", "use_sliding_window": False}
# These scale nothing up to max_position_embeddings, which no published InternVL exceeds.
_PLAIN_ROPE = (None, "default", "dynamic")

# Defaults of fields that a file leaves out, from the configuration class that reads it: OpenGVLab's
# InternVisionConfig, transformers' InternVLVisionConfig and Qwen2Config.
_ORIGINAL_VISION = {
    "hidden_size": 3200,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "image_size": 224,
    "patch_size": 14,
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": False,
    "qk_normalization": True,
    "initializer_factor": 0.1,
}
_HF_VISION = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 448,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "attention_bias": False,
    "use_qk_norm": False,
    "layer_scale_init_value": 0.1,
}
_QWEN2 = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
}
_ROPE_THETA = 10_000.0  # Qwen2Config's default
_IMAGE_TOKEN = 151667  # of every published InternVL with Qwen2


def read_json(file: epath.Path) -> dict[str, Any]:
    """Reads a JSON object; raises UserError if the file is missing or holds none."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{file}: is missing; name the directory of a Hugging Face InternVL checkpoint"
        ) from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON ({error}); copy the checkpoint's file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: is no JSON object; copy the checkpoint's file again")
    return content


def parse_config(folder: epath.Path) -> InternVLConfig:
    """Parses the architecture that a directory's config.json and tokenizer files describe.

    The caller must infer from the tensors whether the head is tied: published files give it wrongly
    or not at all.

    Raises:
        UserError: the file is missing or broken, or describes a model that this package does not
            support.
    """
    file = folder / "config.json"
    raw = read_json(file)
    kind = raw.get("model_type")
    if kind not in ("internvl_chat", "internvl"):
        raise UserError(
            f"{file}: model_type {kind!r} is not supported; use an InternVL 2.5 or 3 checkpoint "
            "with Qwen2"
        )
    original = kind == "internvl_chat"
    text_field = "llm_config" if original else "text_config"
    try:
        text = _parse_text(file, text_field, raw[text_field])
        vision = _parse_vision(file, raw.get("vision_config") or {}, original)
        _check_fixed(file, "", raw, _FIXED)
        tile_size = raw.get("force_image_size") or vision.image_size
        shuffle = round(1 / raw.get("downsample_ratio", 0.5))
        image_token = int(raw.get("image_token_id", raw.get("img_context_token_id", _IMAGE_TOKEN)))
    except KeyError as error:
        raise UserError(f"{file}: lacks {error}; copy the checkpoint's file again") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{file}: a field has a value of the wrong kind ({error}); "
            "copy the checkpoint's file again"
        ) from None
    _check_sizes(file, vision, text, tile_size, shuffle)
    image_token = token_ids(folder).get(IMAGE_CONTEXT, image_token)
    if not 0 <= image_token < text.vocab_size:
        raise UserError(
            f"{folder}: image token {image_token} lies outside the vocabulary of "
            f"{text.vocab_size}; copy the checkpoint's own tokenizer files there"
        )
    return InternVLConfig(vision, text, image_token=image_token, shuffle=shuffle)


def _check_sizes(
    file: epath.Path, vision: VisionConfig, text: TextConfig, tile_size: int, shuffle: int
) -> None:
    """Refuses sizes that do not divide each other."""
    if tile_size != vision.image_size:
        raise UserError(
            f"{file}: force_image_size is {tile_size}, vision_config.image_size "
            f"{vision.image_size}; position embeddings are not interpolated, so set both to the "
            "size that the checkpoint was trained with"
        )
    if vision.grid * vision.patch_size != tile_size or vision.grid % shuffle:
        raise UserError(
            f"{file}: image_size {tile_size} is not a whole number of blocks of {shuffle} x "
            f"{vision.patch_size} pixels; correct vision_config"
        )
    for name, size, divisor in (
        ("width of the vision tower", vision.width, vision.heads),
        ("head width of the language model", text.head_dim, 2),
        ("number of heads of the language model", text.heads, text.kv_heads),
    ):
        if size % divisor:
            raise UserError(
                f"{file}: the {name}, {size}, is not a multiple of {divisor}; correct the widths "
                "or numbers of heads"
            )


def _check_fixed(
    file: epath.Path, prefix: str, fields: dict[str, Any], fixed: dict[str, Any]
) -> None:
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            raise UserError(
                f"{file}: {prefix}{name} {fields[name]!r} is not supported, only {value!r}; "
                "use another checkpoint"
            )


def _parse_text(file: epath.Path, field: str, fields: dict[str, Any]) -> TextConfig:
    kind = fields.get("model_type") or (fields.get("architectures") or [None])[0]
    if kind not in ("qwen2", "Qwen2ForCausalLM", "Qwen2Model"):
        raise UserError(
            f"{file}: {field}.model_type {kind!r} is not supported; use a checkpoint whose "
            "language model is qwen2"
        )
    _check_fixed(file, f"{field}.", fields, _FIXED_TEXT)
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type"))
    if rope_type not in _PLAIN_ROPE:
        raise UserError(
            f"{file}: {field} has rotary scaling of type {rope_type!r}, which is not supported; "
            "use a checkpoint with type 'default' or 'dynamic'"
        )
    given = _QWEN2 | {name: value for name, value in fields.items() if value is not None}
    if fields.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = given["num_attention_heads"]
    width, heads = given["hidden_size"], given["num_attention_heads"]
    head_width = given.get("head_dim")
    return TextConfig(
        width=width,
        layers=given["num_hidden_layers"],
        heads=heads,
        kv_heads=given["num_key_value_heads"],
        mlp_width=given["intermediate_size"],
        vocab_size=given["vocab_size"],
        head_width=None if head_width == width // heads else head_width,
        norm_epsilon=given["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta") or given.get("rope_theta") or _ROPE_THETA),
        tied_head=fields.get("tie_word_embeddings", True),
    )


def _parse_vision(file: epath.Path, fields: dict[str, Any], original: bool) -> VisionConfig:
    _check_fixed(file, "vision_config.", fields, _FIXED_VISION)
    defaults = _ORIGINAL_VISION if original else _HF_VISION
    given = defaults | {name: value for name, value in fields.items() if value is not None}
    if given["norm_type"] not in ("layer_norm", "rms_norm"):
        raise UserError(
            f"{file}: vision_config.norm_type {given['norm_type']!r} is not supported; "
            "use another checkpoint"
        )
    return VisionConfig(
        width=given["hidden_size"],
        layers=given["num_hidden_layers"],
        heads=given["num_attention_heads"],
        mlp_width=given["intermediate_size"],
        image_size=_side(file, "image_size", given["image_size"]),
        patch_size=_side(file, "patch_size", given["patch_size"]),
        norm=given["norm_type"],
        norm_epsilon=given["layer_norm_eps"],
        qkv_bias=given["qkv_bias" if original else "attention_bias"],
        qk_norm=given["qk_normalization" if original else "use_qk_norm"],
        layer_scale=given["initializer_factor" if original else "layer_scale_init_value"],
    )


def _side(file: epath.Path, name: str, value: Any) -> int:
    """The side of a square given as one number or as [height, width]."""
    height, width = value if isinstance(value, list) else (value, value)
    if height != width:
        raise UserError(
            f"{file}: vision_config.{name} {value} is not square; only square tiles and patches "
            "are supported"
        )
    return int(height)


def token_ids(folder: epath.Path) -> dict[str, int]:
    """Reads the ids of added tokens from a directory's tokenizer files; empty without such files.

    Raises:
        UserError: there are tokenizer files, but none has the token <IMG_CONTEXT>.
    """
    names = ("tokenizer.json", "added_tokens.json")
    files = [file for name in names if (file := folder / name).exists()]
    ids = {}
    for file in files:
        content = read_json(file)
        if file.name == "tokenizer.json":
            content = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        ids |= content
    if files and not isinstance(ids.get(IMAGE_CONTEXT), int):
        raise UserError(
            f"{files[0]}: has no token {IMAGE_CONTEXT}; copy the tokenizer files of an InternVL "
            "checkpoint there"
        )
    return ids


def render_config(config: InternVLConfig, dtype: str, ids: dict[str, int]) -> dict[str, Any]:
    """Renders the "-hf" config.json of a model.

    Defaults are written too, because they differ between transformers 4.52 and 5. The rotary base
    is written in both spellings.

    Args:
        config: the architecture.
        dtype: dtype of the stored tensors.
        ids: ids of the tokenizer's added tokens; may be empty.
    """
    text = config.text
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "torch_dtype": dtype,
        "tie_word_embeddings": text.tied_head,
        "image_token_id": config.image_token,
        "image_seq_length": config.tokens_per_tile,
        "downsample_ratio": 1 / config.shuffle,
        "projector_hidden_act": _FIXED["projector_hidden_act"],
        "vision_feature_layer": _FIXED["vision_feature_layer"],
        "vision_feature_select_strategy": _FIXED["vision_feature_select_strategy"],
        "vision_config": _render_vision(config.vision),
        "text_config": _render_text(text, ids),
    }


def _render_vision(vision: VisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["InternVLVisionModel"],
        "model_type": "internvl_vision",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "image_size": [vision.image_size] * 2,
        "patch_size": [vision.patch_size] * 2,
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_epsilon,
        "attention_bias": vision.qkv_bias,
        "use_qk_norm": vision.qk_norm,
        "layer_scale_init_value": vision.layer_scale,
        **_FIXED_VISION,
    }


def _render_text(text: TextConfig, ids: dict[str, int]) -> dict[str, Any]:
    special = {"eos_token_id": ids.get(TURN_END), "pad_token_id": ids.get(END_OF_TEXT)}
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.mlp_width,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.norm_epsilon,
        "rope_theta": text.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
        "max_position_embeddings": _QWEN2["max_position_embeddings"],
        "tie_word_embeddings": text.tied_head,
        **_FIXED_TEXT,
        **{name: index for name, index in special.items() if index is not None},
    }
