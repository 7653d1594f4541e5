"""Which tensor of a Hugging Face checkpoint is which parameter: one table, read both ways.

Three spellings are on disk. "-hf" is what transformers writes, and what is written here. "In-memory" names are those
of transformers' state_dict, the same but for their prefixes. "Original" is OpenGVLab's, whose vision tower keeps query,
key and value in one tensor.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

# parameter's path | -hf name | original name; {} is the layer. A path that ends in a module stands for its kernel or
# scale ("weight" on disk) and its bias. [n] is the n-th third of a tensor's rows.
_TABLE = """
vision.class_token       vision_tower.embeddings.cls_token                  vision_model.embeddings.class_embedding
vision.positions         vision_tower.embeddings.position_embeddings        vision_model.embeddings.position_embedding
vision.patch_embed       vision_tower.embeddings.patch_embeddings.projection vision_model.embeddings.patch_embedding
vision.layers.norm1      vision_tower.encoder.layer.{}.layernorm_before     vision_model.encoder.layers.{}.norm1
vision.layers.query      vision_tower.encoder.layer.{}.attention.q_proj     vision_model.encoder.layers.{}.attn.qkv[0]
vision.layers.key        vision_tower.encoder.layer.{}.attention.k_proj     vision_model.encoder.layers.{}.attn.qkv[1]
vision.layers.value      vision_tower.encoder.layer.{}.attention.v_proj     vision_model.encoder.layers.{}.attn.qkv[2]
vision.layers.query_norm vision_tower.encoder.layer.{}.attention.q_norm     vision_model.encoder.layers.{}.attn.q_norm
vision.layers.key_norm   vision_tower.encoder.layer.{}.attention.k_norm     vision_model.encoder.layers.{}.attn.k_norm
vision.layers.out  vision_tower.encoder.layer.{}.attention.projection_layer vision_model.encoder.layers.{}.attn.proj
vision.layers.scale1     vision_tower.encoder.layer.{}.lambda_1             vision_model.encoder.layers.{}.ls1
vision.layers.norm2      vision_tower.encoder.layer.{}.layernorm_after      vision_model.encoder.layers.{}.norm2
vision.layers.up         vision_tower.encoder.layer.{}.mlp.fc1              vision_model.encoder.layers.{}.mlp.fc1
vision.layers.down       vision_tower.encoder.layer.{}.mlp.fc2              vision_model.encoder.layers.{}.mlp.fc2
vision.layers.scale2     vision_tower.encoder.layer.{}.lambda_2             vision_model.encoder.layers.{}.ls2
projector.norm           multi_modal_projector.layer_norm                   mlp1.0
projector.up             multi_modal_projector.linear_1                     mlp1.1
projector.down           multi_modal_projector.linear_2                     mlp1.3
language.embedding       language_model.model.embed_tokens.weight           =
language.layers.norm1    language_model.model.layers.{}.input_layernorm     =
language.layers.query    language_model.model.layers.{}.self_attn.q_proj    =
language.layers.key      language_model.model.layers.{}.self_attn.k_proj    =
language.layers.value    language_model.model.layers.{}.self_attn.v_proj    =
language.layers.out      language_model.model.layers.{}.self_attn.o_proj    =
language.layers.norm2    language_model.model.layers.{}.post_attention_layernorm =
language.layers.gate     language_model.model.layers.{}.mlp.gate_proj       =
language.layers.up       language_model.model.layers.{}.mlp.up_proj         =
language.layers.down     language_model.model.layers.{}.mlp.down_proj       =
language.norm            language_model.model.norm                          =
language.head            language_model.lm_head.weight                      =
"""
_ROWS = {
    path: (hf, hf if original == "=" else original) for path, hf, original in map(str.split, _TABLE.split("\n")[1:-1])
}
_ON_DISK = {"kernel": "weight", "scale": "weight", "bias": "bias"}
HEAD = "language_model.lm_head.weight"

# In-memory prefix: -hf prefix, the longest first.
_IN_MEMORY = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
# Constants that old checkpoints hold as if they were weights.
_NO_WEIGHT = ".rotary_emb.inv_freq"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter lies in a file.

    Attributes:
        shape: parameter's shape -> stored shape.
        read: stored tensor -> parameter (a view).
        write: (parameter, stored shape) -> stored tensor (a view).
        row_axis: axis of the parameter along which the stored tensor's rows follow one another; None: there is none.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    row_axis: int | None = None


def _patch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    side = math.isqrt(shape[0] // 3)
    return shape[1], 3, side, side


_PLAIN = Layout(lambda shape: shape, lambda x: x, lambda x, shape: x, row_axis=0)
_MATRIX = Layout(lambda shape: shape[::-1], lambda x: x.T, lambda x, shape: x.T, row_axis=1)  # torch keeps [out, in]
_LAYOUTS = {
    "vision.class_token": Layout(lambda shape: (1, 1, *shape), lambda x: x[0, 0], lambda x, shape: x[None, None]),
    "vision.positions": Layout(lambda shape: (1, *shape), lambda x: x[0], lambda x, shape: x[None]),
    # A convolution's [out, channel, row, column], against rows of patches flattened [row, column, channel].
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
        layer: index into the parameter's leading axis; None if it isn't stacked.
        name: the tensor's name.
        shape: the tensor's shape.
        part: which third of the tensor's rows is meant; None: all of it.
        layout: how to turn the tensor (its third) into the parameter (its layer).
    """

    path: tuple[str, ...]
    layer: int | None
    name: str
    shape: tuple[int, ...]
    part: int | None
    layout: Layout


def entries(shapes: dict[tuple[str, ...], tuple[int, ...]], original: bool = False) -> list[Entry]:
    """Every tensor that holds a model's parameters.

    Args:
        shapes: the parameters' shapes by path; LoRA's have no place in a checkpoint and are passed over.
        original: in OpenGVLab's spelling, else "-hf".
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
        for layer in range(shape[0]) if stacked else (None,):
            part_index = int(part[:-1]) if part else None
            listed.append(Entry(path, layer, name.format(layer) + suffix, stored, part_index, layout))
    return listed


def adapter_entries(shapes: dict[tuple[str, ...], tuple[int, ...]]) -> list[Entry]:
    """Every tensor of a PEFT adapter that holds a model's LoRA matrices; the other parameters are passed over."""
    suffixes = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
    listed = []
    for path, shape in shapes.items():
        if path[-1] not in suffixes:
            continue
        on_disk = _ROWS[".".join(path[:-1])][0]
        prefix, on_disk_prefix = next(x for x in _IN_MEMORY.items() if on_disk.startswith(x[1]))
        name = f"base_model.model.{prefix}{on_disk.removeprefix(on_disk_prefix)}{suffixes[path[-1]]}"
        stored = _MATRIX.shape(shape[1:])
        listed += [Entry(path, layer, name.format(layer), stored, None, _MATRIX) for layer in range(shape[0])]
    return listed


def is_original(names: Iterable[str]) -> bool:
    """Whether tensor names are in OpenGVLab's spelling."""
    return any(name.startswith(("vision_model.", "mlp1.")) for name in names)


def normalise(name: str) -> str | None:
    """A tensor's name with in-memory prefixes turned into those on disk; None for what is no weight."""
    if name.endswith(_NO_WEIGHT):
        return None
    for prefix, on_disk in _IN_MEMORY.items():
        if name.startswith(prefix):
            return on_disk + name.removeprefix(prefix)
    return name
