"""Attention with grouped queries: over one sequence, and over a prompt shared by a group plus each member's own keys.

Softmax runs in float32. Masks are boolean, True where a query may look. The largest negative number stands in for minus
infinity, so that a row that may look nowhere (padding) stays finite.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)


def attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    mask: Bool[Array, "B S Z"] | None = None,
) -> Float[Array, "B S H E"]:
    """Scaled dot-product attention; query head h reads key-value head h // (H / K)."""
    batch, length, heads, width = queries.shape
    kv_heads = keys.shape[2]
    grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("bskre,bzke->bkrsz", grouped, keys, preferred_element_type=jnp.float32) * width**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, _NEVER)
    weights = jax.nn.softmax(scores).astype(values.dtype)
    return jnp.einsum("bkrsz,bzke->bskre", weights, values).reshape(queries.shape)


def shared_prompt_attention(
    queries: Float[Array, "B G T H E"],
    prompt_keys: Float[Array, "B P K E"],
    prompt_values: Float[Array, "B P K E"],
    prompt_mask: Bool[Array, "B P"],
    keys: Float[Array, "B G S K E"],
    values: Float[Array, "B G S K E"],
    mask: Bool[Array, "T S"],
) -> Float[Array, "B G T H E"]:
    """Attention of G completions over their one prompt and over their own tokens, in one softmax.

    Equal to `attention` on prompt and completion concatenated with the prompt repeated G times, but the prompt's keys are
    read once: all G * T queries of a prompt meet them in one matrix product.
    """
    batch, group, length, heads, width = queries.shape
    kv_heads, prompt = keys.shape[3], prompt_keys.shape[1]
    grouped = queries.reshape(batch, group, length, kv_heads, heads // kv_heads, width) * width**-0.5
    to_prompt = jnp.einsum("bgtkre,bpke->bkrgtp", grouped, prompt_keys, preferred_element_type=jnp.float32)
    to_own = jnp.einsum("bgtkre,bgske->bkrgts", grouped, keys, preferred_element_type=jnp.float32)
    to_prompt = jnp.where(prompt_mask[:, None, None, None, None], to_prompt, _NEVER)
    to_own = jnp.where(mask, to_own, _NEVER)
    weights = jax.nn.softmax(jnp.concatenate([to_prompt, to_own], axis=-1)).astype(values.dtype)
    mixed = jnp.einsum("bkrgtp,bpke->bgtkre", weights[..., :prompt], prompt_values)
    mixed += jnp.einsum("bkrgts,bgske->bgtkre", weights[..., prompt:], values)
    return mixed.reshape(queries.shape)
