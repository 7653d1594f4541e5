"""Attention with grouped queries: within a sequence, and of completions over a shared prompt.

Three back ends compute the same function. `xla`, in this file, is the reference: it runs anywhere
and materialises the float32 scores of one block of tokens. `cudnn` (GPU) and `splash` (TPU) never
materialise all scores, forward or backward. Callers state the mask's structure (causal, a shared
prompt) instead of passing a mask [B, S, Z]; each back end converts it to its own form.

Softmax runs in float32. `xla` normalises after the value product, which has fewer elements than the
weights, and masks with a large negative number instead of minus infinity, so that a row without any
visible key stays finite.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.errors import UserError
from aesthetic_jax.models import cudnn, splash
from aesthetic_jax.models.config import ATTENTION, InternVLConfig

_MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# Tokens per block in `xla`: a block's scores fit a CPU's cache; causal blocks skip later keys.
_BLOCK = 128


def choose_backend(config: InternVLConfig) -> str:
    """The back end that `config.attention` means for this program: "xla", "cudnn" or "splash".

    The target platform is that of the mesh in context (`jax.set_mesh`), which may describe a TPU
    that isn't attached; without a mesh it is JAX's default platform. "auto" means splash on TPU,
    cudnn on GPU where it supports the model, else xla.

    Raises:
        UserError: the back end doesn't exist, or doesn't support the platform or the model.
    """
    if config.attention not in ATTENTION:
        raise UserError(
            f"config.model.attention: no '{config.attention}'; choose from {', '.join(ATTENTION)}"
        )
    platform = target_platform()
    if config.attention == "auto":
        backend = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
        return "xla" if _refusal(backend, platform, config) else backend
    if refusal := _refusal(config.attention, platform, config):
        raise UserError(f"config.model.attention: {refusal}")
    return config.attention


def target_platform() -> str:
    """The platform to compile for: that of the mesh in context, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _refusal(backend: str, platform: str, config: InternVLConfig) -> str | None:
    """Why a back end can't run this model on this platform, and what to change; None if it can."""
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(backend, platform)
    if platform != needed:
        return (
            f"{backend} runs on a {needed.upper()}, and this is a {platform.upper()}; "
            "choose auto or xla"
        )
    return cudnn.refusal(config) if backend == "cudnn" else None


def as_cached(
    keys: Float[Array, "*batch S K E"], values: Float[Array, "*batch S K E"]
) -> tuple[Float[Array, "*batch K E S"], Float[Array, "*batch K S E"]]:
    """Keys and values in the caches' layout, which both attention products read without a copy."""
    return jnp.moveaxis(keys, -3, -1), values.swapaxes(-3, -2)


def attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    *,
    causal: bool = False,
    backend: str = "xla",
) -> Float[Array, "B S H E"]:
    """Scaled dot-product attention; query head h reads key-value head h // (H / K).

    Args:
        queries: unscaled, of S tokens.
        keys: of Z tokens; causal attention needs Z = S.
        values: of the same Z tokens.
        causal: query s sees keys 0 to s; otherwise every query sees every key.
        backend: from `choose_backend`.
    """
    if backend == "splash":
        prefix, segment_length = (0, queries.shape[1]) if causal else (keys.shape[1], 0)
        return splash.splash_attention(
            queries, keys, values, prefix=prefix, segment_length=segment_length
        )
    if backend == "cudnn":
        return cudnn.cudnn_attention(queries, keys, values, causal=causal)
    rows, cached = _rows_by_kv_head(queries, keys.shape[2]), as_cached(keys, values)
    partial = _partial_softmax_in_blocks(rows, *cached, queries.shape[1], 0 if causal else None)
    return _rows_by_token(partial.values / partial.row_sum, queries)


def shared_prompt_attention(
    queries: Float[Array, "B G T H E"],
    prompt_keys: Float[Array, "B K E P"],
    prompt_values: Float[Array, "B K P E"],
    prompt_mask: Bool[Array, "B P"],
    keys: Float[Array, "B G K E S"],
    values: Float[Array, "B G K S E"],
    filled: int | Int[Array, ""] = 0,
    *,
    backend: str = "xla",
) -> Float[Array, "B G T H E"]:
    """Attention of G completions over their shared prompt and their own tokens, in one softmax.

    Equals `attention` over prompt and completion concatenated, with the prompt repeated G times.
    `xla` and `splash` keep one copy of the prompt's keys for all G * T queries; `cudnn` copies it
    per completion.

    Args:
        queries: unscaled, of T tokens per completion.
        prompt_keys: of P tokens, in the layout of `as_cached`.
        prompt_values: likewise.
        prompt_mask: True at tokens.
        keys: the completions' own, in the layout of `as_cached`.
        values: likewise.
        filled: number of own tokens before the T queries; query t sees own keys 0 to filled + t.
        backend: from `choose_backend`; all but xla need filled = 0 and S = T.
    """
    if backend != "xla":
        shared = {
            "splash": splash.shared_prompt_attention,
            "cudnn": cudnn.shared_prompt_attention,
        }[backend]
        prompt_keys, keys = (jnp.moveaxis(x, -1, -3) for x in (prompt_keys, keys))
        prompt_values, values = (x.swapaxes(-3, -2) for x in (prompt_values, values))
        return shared(queries, prompt_keys, prompt_values, prompt_mask, keys, values)
    batch, group, length = queries.shape[:3]
    kv_heads = keys.shape[2]
    rows = _rows_by_kv_head(queries, kv_heads)
    if isinstance(filled, int):
        own = _partial_softmax_in_blocks(rows, keys, values, length, filled)
    else:
        visible = _causal_mask(rows.shape[-2], length, keys.shape[-1], filled)
        own = _partial_softmax(rows, keys, values, visible)
    # All completions of a prompt read it in one matrix product.
    group_rows = rows.swapaxes(1, 2).reshape(batch, kv_heads, -1, rows.shape[-1])
    prompt = _partial_softmax(group_rows, prompt_keys, prompt_values, prompt_mask[:, None, None])
    prompt = _PartialSoftmax(
        *(x.reshape(batch, kv_heads, group, -1, x.shape[-1]).swapaxes(1, 2) for x in prompt)
    )
    row_max = jnp.maximum(own.row_max, prompt.row_max)
    own_scale, prompt_scale = jnp.exp(own.row_max - row_max), jnp.exp(prompt.row_max - row_max)
    values = own.values * own_scale + prompt.values * prompt_scale
    row_sum = own.row_sum * own_scale + prompt.row_sum * prompt_scale
    return _rows_by_token(values / row_sum, queries)


class _PartialSoftmax(NamedTuple):
    """Unnormalised attention over some of the keys; partial results over other keys can be added.

    values / row_sum is the attention over these keys alone.
    """

    values: Float[Array, "*batch Q E"]  # weighted with exp(score - row_max)
    row_sum: Float[Array, "*batch Q 1"]  # sum of the weights
    row_max: Float[Array, "*batch Q 1"]  # largest score


def _partial_softmax(
    queries: Float[Array, "*batch Q E"],
    keys: Float[Array, "*batch E Z"],
    values: Float[Array, "*batch Z E"],
    visible: Bool[Array, "*#batch #Q Z"] | None = None,
) -> _PartialSoftmax:
    """Attention of the rows of `_rows_by_kv_head` over keys and values as cached; float32 results.

    Args:
        queries: scaled rows.
        keys: in the layout of `as_cached`.
        values: likewise.
        visible: True where a row sees a key; None: everywhere.
    """
    scores = jnp.matmul(queries, keys, preferred_element_type=jnp.float32)
    if visible is not None:
        scores = jnp.where(visible, scores, _MASKED)
    row_max = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels in values / row_sum
    weights = jnp.exp(scores - row_max)
    summed = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    summed = checkpoint_name(summed, splash.ATTENTION_OUTPUT)
    return _PartialSoftmax(summed, weights.sum(-1, keepdims=True), row_max)


def _partial_softmax_in_blocks(
    queries: Float[Array, "*batch Q E"],
    keys: Float[Array, "*batch E Z"],
    values: Float[Array, "*batch Z E"],
    tokens: int,
    offset: int | None = None,
) -> _PartialSoftmax:
    """`_partial_softmax` of all rows, one block of tokens at a time.

    Args:
        queries: Q / tokens rows for each token.
        keys: as to `_partial_softmax`.
        values: likewise.
        tokens: number of tokens.
        offset: attention is causal, and this many keys precede the first token's; None: not causal.
    """
    rows_per_token = queries.shape[-2] // tokens
    blocks = max(1, round(tokens / _BLOCK))
    ends = [tokens * block // blocks for block in range(blocks + 1)]
    partials = []
    for start, end in itertools.pairwise(ends):
        rows = queries[..., start * rows_per_token : end * rows_per_token, :]
        num_keys, visible = keys.shape[-1], None
        if offset is not None:
            num_keys = offset + end
            visible = _causal_mask(rows.shape[-2], end - start, num_keys, offset + start)
        partials.append(
            _partial_softmax(rows, keys[..., :num_keys], values[..., :num_keys, :], visible)
        )
    return _PartialSoftmax(
        *(jnp.concatenate(blocks, axis=-2) for blocks in zip(*partials, strict=True))
    )


def _rows_by_kv_head(
    queries: Float[Array, "*batch S H E"], kv_heads: int
) -> Float[Array, "*batch {kv_heads} S*H//{kv_heads} E"]:
    """Scaled queries as one matrix per key-value head, with the H / K rows of a token side by side.

    XLA's CPU code is many times slower if these H / K rows have a separate axis.
    """
    *leading, length, heads, width = queries.shape
    grouped = (queries * width**-0.5).reshape(*leading, length, kv_heads, heads // kv_heads, width)
    return jnp.moveaxis(grouped, -3, -4).reshape(*leading, kv_heads, -1, width)


def _rows_by_token(
    rows: Float[Array, "*batch K rows E"], queries: Float[Array, "*batch S H E"]
) -> Float[Array, "*batch S H E"]:
    """Rows of `_rows_by_kv_head` back in the order, shape and dtype of the queries."""
    *leading, length, heads, width = queries.shape
    kv_heads = rows.shape[-3]
    grouped = rows.reshape(*leading, kv_heads, length, heads // kv_heads, width)
    return jnp.moveaxis(grouped, -4, -3).reshape(queries.shape).astype(queries.dtype)


def _causal_mask(
    rows: int, tokens: int, keys: int, offset: int | Int[Array, ""]
) -> Bool[Array, "{rows} {keys}"]:
    """Which keys each row of `_rows_by_kv_head` sees: up to its own token's, the (offset + t)th."""
    return jnp.arange(keys) <= offset + jnp.arange(rows)[:, None] // (rows // tokens)
