"""cuDNN attention on GPUs, through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from aesthetic_jax.models.config import InternVLConfig

_MAX_HEAD_DIM = 128  # on every GPU; Hopper and later support 256


def refusal(config: InternVLConfig) -> str | None:
    """Why cuDNN can't run this model, and what to change; None if it can."""
    if config.dtype != "bfloat16":
        return (
            f"cudnn takes bfloat16, and config.model.dtype is {config.dtype}; "
            "choose bfloat16 there, or auto or xla here"
        )
    head_dims = {
        "vision tower": config.vision.head_dim,
        "language model": config.text.head_dim,
    }
    for name, head_dim in head_dims.items():
        if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
            return (
                f"cudnn takes heads of a multiple of 8 channels, up to {_MAX_HEAD_DIM}, "
                f"and the {name}'s have {head_dim}; choose auto or xla"
            )
    return None


def cudnn_attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    *,
    mask: Bool[Array, "B 1 S Z"] | None = None,
    causal: bool = False,
) -> Float[Array, "B S H E"]:
    """`attention.attention` by cuDNN; `mask`, where given, is True at the keys a query sees.

    Pads queries and keys to even numbers, which JAX requires for the backward pass.
    """
    length, num_keys = queries.shape[1], keys.shape[1]
    pad_queries, pad_keys = length % 2, num_keys % 2
    key_lengths = None
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, pad_queries), (0, pad_keys)))
    elif pad_keys and not causal:
        key_lengths = jnp.full(len(keys), num_keys, jnp.int32)
    queries = jnp.pad(queries, ((0, 0), (0, pad_queries), (0, 0), (0, 0)))
    keys, values = (jnp.pad(x, ((0, 0), (0, pad_keys), (0, 0), (0, 0))) for x in (keys, values))
    output = jax.nn.dot_product_attention(
        queries,
        keys,
        values,
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    return output[:, :length]


def shared_prompt_attention(
    queries: Float[Array, "B G T H E"],
    prompt_keys: Float[Array, "B P K E"],
    prompt_values: Float[Array, "B P K E"],
    prompt_mask: Bool[Array, "B P"],
    keys: Float[Array, "B G T K E"],
    values: Float[Array, "B G T K E"],
) -> Float[Array, "B G T H E"]:
    """`attention.shared_prompt_attention` with one row per completion: prompt copy, own tokens.

    The mask [B * G, 1, T, P + T] is explicit because cuDNN's causal and length masks both start at
    the first key, which is wrong for keys after a padded prompt.
    """
    batch, group, length = queries.shape[:3]

    def in_rows(prompt: Array, own: Array) -> Array:
        prompt = jnp.broadcast_to(prompt[:, None], (batch, group, *prompt.shape[1:]))
        return jnp.concatenate([prompt, own], axis=2).reshape(batch * group, -1, *own.shape[3:])

    prompt_visible = jnp.broadcast_to(
        prompt_mask[:, None, None], (batch, group, length, prompt_mask.shape[1])
    )
    own_visible = jnp.broadcast_to(
        jnp.tril(jnp.ones((length, length), bool)), (batch, group, length, length)
    )
    output = cudnn_attention(
        queries.reshape(batch * group, *queries.shape[2:]),
        in_rows(prompt_keys, keys),
        in_rows(prompt_values, values),
        mask=jnp.concatenate([prompt_visible, own_visible], axis=-1).reshape(
            batch * group, 1, length, -1
        ),
    )
    return output.reshape(queries.shape)
