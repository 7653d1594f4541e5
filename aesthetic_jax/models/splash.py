"""Splash attention on TPUs: JAX's Pallas kernel, adapted to the model's layouts and mesh.

The kernel works through the scores block by block and skips blocks without a visible key. It needs
scaled queries, heads before tokens, and lengths that its blocks divide. Verified by compiling ahead
of time for TPUs and by running in Pallas' interpreter; the block sizes are not tuned on hardware.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jaxtyping import Array, Bool, Float

from aesthetic_jax.models.sharding import BATCH_AXES, RULES

LANES = 128  # of a vector register; block sizes are multiples of it
# Names attention's output, and the residuals of this kernel, for rematerialisation policies.
ATTENTION_OUTPUT = "attention_output"
_BLOCK = 512  # tokens of the largest block


def splash_attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    valid: Bool[Array, "B Z"] | None = None,
    *,
    prefix: int,
    segment_length: int = 0,
) -> Float[Array, "B S H E"]:
    """Attention over a prefix of the keys, and causally within segments of the queries' own tokens.

    Under a mesh (`jax.set_mesh`) each device computes its share of rows and heads. A mesh axis that
    divides neither rows nor heads splits nothing: its devices repeat the same work.

    Args:
        queries: unscaled; S is a multiple of `segment_length`.
        keys: `prefix` keys, then with segments the queries' own S; Z = prefix + S, or prefix.
        values: likewise.
        valid: False at keys that no query of the row sees; None: all are valid. Every query needs
            at least one visible key.
        prefix: number of keys that every query sees.
        segment_length: number of tokens in a segment; S for plain causal attention, 0 where the
            queries' own tokens are not among the keys.
    """
    local = functools.partial(_local_attention, prefix=prefix, segment_length=segment_length)
    mesh = jax.sharding.get_abstract_mesh()
    axis_sizes = {
        axis: mesh.shape[axis]
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual  # already split by an enclosing shard_map
    }
    if not axis_sizes:
        return local(queries, keys, values, valid)
    batch, _, heads, _ = queries.shape
    kv_heads, tensor = keys.shape[2], RULES["heads"]
    devices = axis_sizes.get(tensor, 1)
    split_heads = heads % devices == 0 and (kv_heads % devices == 0 or devices % kv_heads == 0)
    if split_heads and kv_heads % devices:
        # Several devices share a key-value head: each gets a copy of the one its query heads read.
        keys, values = (jnp.repeat(x, devices // kv_heads, axis=2) for x in (keys, values))
    row_axes = []
    for axis in BATCH_AXES if split_heads else (*BATCH_AXES, tensor):
        if axis in axis_sizes and batch % axis_sizes[axis] == 0:
            batch //= axis_sizes[axis]
            row_axes.append(axis)
    head_axis = tensor if split_heads and tensor in axis_sizes else None
    spec = jax.P(tuple(row_axes), None, head_axis)
    return jax.shard_map(
        local,
        in_specs=(spec, spec, spec, jax.P(tuple(row_axes))),
        out_specs=spec,
        axis_names=set(axis_sizes),
        check_vma=False,  # the kernel doesn't declare over which axes its result varies
    )(queries, keys, values, valid)


def shared_prompt_attention(
    queries: Float[Array, "B G T H E"],
    prompt_keys: Float[Array, "B P K E"],
    prompt_values: Float[Array, "B P K E"],
    prompt_mask: Bool[Array, "B P"],
    keys: Float[Array, "B G T K E"],
    values: Float[Array, "B G T K E"],
) -> Float[Array, "B G T H E"]:
    """`attention.shared_prompt_attention` with the G completions as one sequence after the prompt.

    The prompt is the prefix, and each completion is a segment.
    """
    batch, group, length = queries.shape[:3]
    padding = -length % LANES
    if 8 * padding > length:  # costs more than segments that cross block borders
        padding = 0

    def in_one_row(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0), (0, 0)))
        return x.reshape(batch, group * (length + padding), *x.shape[3:])

    own_valid = jnp.ones((batch, group * (length + padding)), bool)
    output = splash_attention(
        in_one_row(queries),
        jnp.concatenate([prompt_keys, in_one_row(keys)], axis=1),
        jnp.concatenate([prompt_values, in_one_row(values)], axis=1),
        jnp.concatenate([prompt_mask, own_valid], axis=1),
        prefix=prompt_mask.shape[1],
        segment_length=length + padding,
    )
    return output.reshape(batch, group, length + padding, *output.shape[2:])[:, :, :length]


def _local_attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    valid: Bool[Array, "B Z"] | None,
    *,
    prefix: int,
    segment_length: int,
) -> Float[Array, "B S H E"]:
    """`splash_attention` on one device."""
    batch, length, heads, width = queries.shape
    num_keys = keys.shape[1]
    kernel = _kernel(heads, length, num_keys, prefix, segment_length)
    padded_length, padded_keys = _block_size(length)[1], _block_size(num_keys)[1]

    def heads_first(x: Array, padded: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    scaled = (queries.astype(jnp.float32) * width**-0.5).astype(queries.dtype)
    segment_ids = None
    if valid is not None:
        key_ids = jnp.pad(valid, ((0, 0), (0, padded_keys - num_keys))).astype(jnp.int32)
        segment_ids = pallas.SegmentIds(jnp.ones((batch, padded_length), jnp.int32), key_ids)
    output = jax.vmap(kernel)(
        heads_first(scaled, padded_length),
        heads_first(keys, padded_keys),
        heads_first(values, padded_keys),
        segment_ids,
    )
    return output.swapaxes(1, 2)[:, :length]


def _kernel(heads: int, length: int, num_keys: int, prefix: int, segment_length: int) -> Callable:
    """The kernel for `length` queries and `num_keys` keys, both padded to whole blocks."""
    query_block, padded_length = _block_size(length)
    key_block, padded_keys = _block_size(num_keys)
    mask = _SegmentMask((padded_length, padded_keys), prefix, segment_length)
    sizes = pallas.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        block_q_dq=query_block,
        block_kv_dq=key_block,
    )
    return pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_OUTPUT,
    )


def _block_size(length: int) -> tuple[int, int]:
    """The block size for a length, and the length padded to whole blocks.

    As few blocks as _BLOCK allows, each as small as possible.
    """
    count = math.ceil(length / _BLOCK)
    size = math.ceil(length / count / LANES) * LANES
    return size, count * size


@dataclasses.dataclass(frozen=True)
class _SegmentMask(pallas.Mask):
    """What queries see in every row: the first `prefix` keys, then causally their own segment.

    The keys after the prefix are the queries' own tokens, in segments of `segment_length`; 0: there
    are no keys after the prefix.
    """

    size: tuple[int, int]
    prefix: int
    segment_length: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        query, key = (
            np.arange(*indices.indices(size))
            for indices, size in zip(block, self.size, strict=True)
        )
        key -= self.prefix
        visible = np.broadcast_to(key < 0, (query.size, key.size))
        if self.segment_length:
            causal = key <= query[:, None]
            same_segment = key // self.segment_length == query[:, None] // self.segment_length
            visible = visible | causal & same_segment
        return visible
