"""Names of parameters and of Hugging Face tensors: one table, used in both directions.

Published checkpoints spell names in three ways:

- "-hf": written to disk by transformers and by this package;
- "in-memory": those of transformers' state_dict, which differ from "-hf" in their prefixes;
- "original": OpenGVLab's, whose vision tower keeps query, key and value in one fused tensor.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

# Each section: prefixes of parameter, "-hf" name and original name ({} is the layer), then rows.
# A row that names a module stands for its kernel or scale ("weight" on disk) and its bias.
# [n] is the n-th third of a fused tensor. The language model has the same names in both spellings.
_SECTIONS = {
    ("vision.", "vision_tower.embeddings.", "vision_model.embeddings."): """
        class_token  cls_token                    class_embedding
        positions    position_embeddings          position_embedding
        patch_embed  patch_embeddings.projection  patch_embedding
    """,
    ("vision.layers.", "vision_tower.encoder.layer.{}.", "vision_model.encoder.layers.{}."): """
        norm1        layernorm_before             norm1
        query        attention.q_proj             attn.qkv[0]
        key          attention.k_proj             attn.qkv[1]
        value        attention.v_proj             attn.qkv[2]
        query_norm   attention.q_norm             attn.q_norm
        key_norm     attention.k_norm             attn.k_norm
        out          attention.projection_layer   attn.proj
        scale1       lambda_1                     ls1
        norm2        layernorm_after              norm2
        up           mlp.fc1                      mlp.fc1
        down         mlp.fc2                      mlp.fc2
        scale2       lambda_2                     ls2
    """,
    ("projector.", "multi_modal_projector.", "mlp1."): """
        norm         layer_norm                   0
        up           linear_1                     1
        down         linear_2                     3
    """,
    ("language.", "language_model.", "language_model."): """
        embedding    model.embed_tokens.weight    model.embed_tokens.weight
        norm         model.norm                   model.norm
        head         lm_head.weight               lm_head.weight
    """,
    ("language.layers.", "language_model.model.layers.{}.", "language_model.model.layers.{}."): """
        norm1        input_layernorm              input_layernorm
        query        self_attn.q_proj             self_attn.q_proj
        key          self_attn.k_proj             self_attn.k_proj
        value        self_attn.v_proj             self_attn.v_proj
        out          self_attn.o_proj             self_attn.o_proj
        norm2        post_attention_layernorm     post_attention_layernorm
        gate         mlp.gate_proj                mlp.gate_proj
        up           mlp.up_proj                  mlp.up_proj
        down         mlp.down_proj                mlp.down_proj
    """,
}
_ROWS = {
    parameter + names[0]: (hf + names[1], original + names[2])
    for (parameter, hf, original), rows in _SECTIONS.items()
    for names in map(str.split, rows.strip().split("\n"))
}
_ON_DISK = {"kernel": "weight", "scale": "weight", "bias": "bias"}
HEAD = "language_model.lm_head.weight"

# In-memory prefix: "-hf" prefix.
_IN_MEMORY = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
# A constant that old checkpoints store among the weights.
_CONSTANT = ".rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter is stored in a file.

    Attributes:
        shape: parameter's shape -> stored shape.
        read: stored tensor -> parameter, a view.
        write: (parameter, stored shape) -> stored tensor, a view.
        row_axis: the parameter's axis that is the stored tensor's first axis; None: there is none.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    row_axis: int | None = None


def _patch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    side = math.isqrt(shape[0] // 3)
    return shape[1], 3, side, side


_PLAIN = Layout(lambda shape: shape, lambda x: x, lambda x, shape: x, row_axis=0)
# PyTorch stores matrices as [out, in].
_MATRIX = Layout(lambda shape: shape[::-1], lambda x: x.T, lambda x, shape: x.T, row_axis=1)
_LAYOUTS = {
    "vision.class_token": Layout(
        lambda shape: (1, 1, *shape), lambda x: x[0, 0], lambda x, shape: x[None, None]
    ),
    "vision.positions": Layout(lambda shape: (1, *shape), lambda x: x[0], lambda x, shape: x[None]),
    # A convolution [out, channel, row, column]; the parameter has rows (row, column, channel).
    "vision.patch_embed.kernel": Layout(
        _patch_shape,
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
        lambda x, shape: x.reshape(*shape[2:], shape[1], shape[0]).transpose(3, 2, 0, 1),
    ),
    "language.head": _MATRIX,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint, or one third of a fused one.

    Attributes:
        path: the parameter's path, as flatten_dict gives it.
        layer: index into the parameter's leading axis; None: it is not stacked.
        name: the tensor's name.
        shape: the tensor's shape.
        part: which third of the tensor's rows; None: all rows.
        layout: turns the tensor (its third) into the parameter (its layer).
    """

    path: tuple[str, ...]
    layer: int | None
    name: str
    shape: tuple[int, ...]
    part: int | None
    layout: Layout


def entries(shapes: dict[tuple[str, ...], tuple[int, ...]], original: bool = False) -> list[Entry]:
    """Lists the tensors that hold a model's parameters.

    Args:
        shapes: the parameters' shapes by path; LoRA's are skipped, since no checkpoint holds them.
        original: use OpenGVLab's names instead of "-hf".
    """
    listed = []
    for path, shape in shapes.items():
        if path[-1].startswith("lora_"):
            continue
        dotted, module = ".".join(path), ".".join(path[:-1])
        if dotted in _ROWS:
            name, suffix = _ROWS[dotted][original], ""
        else:
            name, suffix = _ROWS[module][original], "." + _ON_DISK[path[-1]]
        name, _, part = name.partition("[")
        layout = _LAYOUTS.get(dotted, _MATRIX if path[-1] == "kernel" else _PLAIN)
        stacked = "{}" in name
        stored = layout.shape(shape[1:] if stacked else shape)
        if part:
            stored = (3 * stored[0], *stored[1:])
        third = int(part[:-1]) if part else None
        for layer in range(shape[0]) if stacked else (None,):
            full_name = name.format(layer) + suffix
            listed.append(Entry(path, layer, full_name, stored, third, layout))
    return listed


def adapter_entries(shapes: dict[tuple[str, ...], tuple[int, ...]]) -> list[Entry]:
    """Lists the tensors of a PEFT adapter that hold LoRA matrices; other parameters are skipped."""
    suffixes = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
    listed = []
    for path, shape in shapes.items():
        if path[-1] not in suffixes:
            continue
        on_disk = _ROWS[".".join(path[:-1])][0]
        prefix, hf_prefix = next(x for x in _IN_MEMORY.items() if on_disk.startswith(x[1]))
        in_memory = prefix + on_disk.removeprefix(hf_prefix)
        name = f"base_model.model.{in_memory}{suffixes[path[-1]]}"
        stored = _MATRIX.shape(shape[1:])
        listed += [
            Entry(path, layer, name.format(layer), stored, None, _MATRIX)
            for layer in range(shape[0])
        ]
    return listed


def is_original(names: Iterable[str]) -> bool:
    """Whether tensor names are in OpenGVLab's spelling."""
    return any(name.startswith(("vision_model.", "mlp1.")) for name in names)


def normalise(name: str) -> str | None:
    """Turns in-memory prefixes of a tensor's name into those on disk; None: not a weight."""
    if name.endswith(_CONSTANT):
        return None
    for prefix, on_disk in _IN_MEMORY.items():
        if name.startswith(prefix):
            return on_disk + name.removeprefix(prefix)
    return name
