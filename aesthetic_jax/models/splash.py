"""Splash attention on TPU: JAX's Pallas kernel, fitted to the model's layouts, lengths and mesh.

The kernel goes through the scores in blocks and skips those that no query may look into. It wants scaled queries, heads
before tokens, and lengths that its blocks divide. Compiled ahead of time for TPUs, and run in Pallas' interpreter; no TPU
was at hand to choose the block sizes on.
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

LANES = 128  # blocks are multiples of a vector register's lanes
SAVED = "splash"  # name, for rematerialisation, of the kernel's results that its backward pass needs
_BLOCK = 512  # tokens of the largest block


@dataclasses.dataclass(frozen=True)
class _Visible(pallas.Mask):
    """What queries may see in every row: the first `prefix` keys, and of those behind them their own run, up to themselves.

    Queries are cut into runs of `run` tokens, and the keys behind the prefix are the queries' own; run 0: there are none.
    """

    size: tuple[int, int]
    prefix: int
    run: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        query, key = (np.arange(*part.indices(size)) for part, size in zip(block, self.size, strict=True))
        key -= self.prefix
        visible = np.broadcast_to(key < 0, (query.size, key.size))
        if self.run:
            visible = visible | (key <= query[:, None]) & (key // self.run == query[:, None] // self.run)
        return visible


def _block(length: int) -> tuple[int, int]:
    """Block size, and the length it is padded to: as few blocks as _BLOCK allows, each no larger than they need be."""
    count = math.ceil(length / _BLOCK)
    size = math.ceil(length / count / LANES) * LANES
    return size, count * size


def _kernel(heads: int, length: int, span: int, prefix: int, run: int) -> Callable:
    """The kernel for `length` queries over `span` keys, both padded to whole blocks."""
    (query, queries), (key, keys) = _block(length), _block(span)
    mask = pallas.MultiHeadMask([_Visible((queries, keys), prefix, run)] * heads)
    sizes = pallas.BlockSizes(
        block_q=query,
        block_kv=key,
        block_q_dkv=query,
        block_kv_dkv=key,
        block_q_dq=query,
        block_kv_dq=key,
    )
    return pallas.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, residual_checkpoint_name=SAVED
    )


def splash_attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    valid: Bool[Array, "B Z"] | None = None,
    *,
    prefix: int,
    run: int = 0,
) -> Float[Array, "B S H E"]:
    """Attention whose queries see the first `prefix` keys, and of the S behind them their own run of tokens up to themselves.

    Under a mesh (`jax.set_mesh`) each device takes its share of rows and heads. An axis that divides neither the rows nor the
    heads splits nothing: its devices compute the same.

    Args:
        queries: S = a multiple of `run`.
        keys: Z = prefix + S with runs, else prefix.
        values: of the same.
        valid: False at keys that no query of the row sees; None: none such. A row needs a key for each query to see.
        prefix: number of keys.
        run: number of tokens; the whole S for causal attention, 0 if the queries' own tokens aren't among the keys.
    """
    local = functools.partial(_local, prefix=prefix, run=run)
    mesh = jax.sharding.get_abstract_mesh()
    free = {
        axis: mesh.shape[axis]
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind != jax.sharding.AxisType.Manual  # those have been split already
    }
    if not free:
        return local(queries, keys, values, valid)
    batch, _, heads, _ = queries.shape
    kv_heads, tensor, devices = keys.shape[2], RULES["heads"], free.get(RULES["heads"], 1)
    by_heads = heads % devices == 0 and (kv_heads % devices == 0 or devices % kv_heads == 0)
    if (
        by_heads and kv_heads % devices
    ):  # each device's query heads read one key-value head, which several devices share
        keys, values = (jnp.repeat(x, devices // kv_heads, axis=2) for x in (keys, values))
    rows = []
    for axis in BATCH_AXES if by_heads else (*BATCH_AXES, tensor):
        if axis in free and batch % free[axis] == 0:
            batch //= free[axis]
            rows.append(axis)
    spec = jax.P(tuple(rows), None, tensor if by_heads and tensor in free else None)
    return jax.shard_map(
        local,
        in_specs=(spec, spec, spec, jax.P(tuple(rows))),
        out_specs=spec,
        axis_names=set(free),
        check_vma=False,  # the kernel doesn't say over which axes its result varies
    )(queries, keys, values, valid)


def _local(queries, keys, values, valid, *, prefix: int, run: int):
    """`splash_attention` on one device."""
    batch, length, heads, width = queries.shape
    span = keys.shape[1]
    kernel = _kernel(heads, length, span, prefix, run)
    padded, padded_span = _block(length)[1], _block(span)[1]

    def heads_first(x, to):
        return jnp.pad(x, ((0, 0), (0, to - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    scaled = (queries.astype(jnp.float32) * width**-0.5).astype(queries.dtype)
    segments = None
    if valid is not None:
        seen = jnp.pad(valid, ((0, 0), (0, padded_span - span))).astype(jnp.int32)
        segments = pallas.SegmentIds(jnp.ones((batch, padded), jnp.int32), seen)
    mixed = jax.vmap(kernel)(
        heads_first(scaled, padded), heads_first(keys, padded_span), heads_first(values, padded_span), segments
    )
    return mixed.swapaxes(1, 2)[:, :length]
