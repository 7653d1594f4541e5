"""Qwen2: the language model's layers, written so that the caller decides what a token may look at."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.layers import Linear, RMSNorm, parameter
from aesthetic_jax.models.sharding import constrain, gathered


class Rotation(NamedTuple):
    """Rotary position embedding of tokens: cosine and sine of each position's angle, float32."""

    cos: Float[Array, "... 1 E/2"]  # the same for every head
    sin: Float[Array, "... 1 E/2"]


def rotation(positions: Int[Array, "..."], head_dim: int, theta: float) -> Rotation:
    """What turns the channels of tokens at these positions, computed once for all layers."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "... H E"], by: Rotation) -> Float[Array, "... H E"]:
    """Rotary position embedding in float32, halves convention: channel i pairs with i + E/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * by.cos - second * by.sin, second * by.cos + first * by.sin], axis=-1).astype(
        x.dtype
    )


class TextLayer(nnx.Module):
    """Pre-norm attention with grouped queries, then SwiGLU."""

    def __init__(self, config: InternVLConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs):
        text = config.text
        width, heads, kv = text.width, text.heads * text.head_dim, text.kv_heads * text.head_dim
        projection = dict(stack=stack, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, rngs=rngs)
        damped = (2 * text.layers) ** -0.5
        self.norm1 = RMSNorm(width, text.norm_epsilon, stack=stack, rngs=rngs)
        self.query = Linear(width, heads, ("embed", "heads"), bias=True, **projection)
        self.key = Linear(width, kv, ("embed", "kv_heads"), bias=True, **projection)
        self.value = Linear(width, kv, ("embed", "kv_heads"), bias=True, **projection)
        self.out = Linear(heads, width, ("heads", "embed"), gain=damped, **projection)
        self.norm2 = RMSNorm(width, text.norm_epsilon, stack=stack, rngs=rngs)
        self.gate = Linear(width, text.mlp_width, ("embed", "mlp"), **projection)
        self.up = Linear(width, text.mlp_width, ("embed", "mlp"), **projection)
        self.down = Linear(text.mlp_width, width, ("mlp", "embed"), gain=damped, **projection)
        self.head_dim = text.head_dim

    def __call__(self, x: Float[Array, "rows D"], rotary: Rotation, attend: Callable) -> Float[Array, "rows D"]:
        """One layer.

        Args:
            x: hidden states of tokens, which the layer takes one by one.
            rotary: of `rotation`, of the same tokens.
            attend: (queries [rows, H, E], keys [rows, K, E], values [rows, K, E]) -> mixed values [..., H, E] in the rows' order.
        """
        h = self.norm1(x)
        split = (len(x), -1, self.head_dim)
        queries = constrain(rotate(self.query(h).reshape(split), rotary), "batch", "heads")
        keys = constrain(rotate(self.key(h).reshape(split), rotary), "batch", "kv_heads")
        values = constrain(self.value(h).reshape(split), "batch", "kv_heads")
        mixed = attend(queries, keys, values)
        x = constrain(x + self.out(mixed.reshape(len(x), -1)), "batch")
        h = self.norm2(x)
        h = constrain(jax.nn.silu(self.gate(h)) * self.up(h), "batch", "mlp")
        return constrain(x + self.down(h), "batch")


class LanguageModel(nnx.Module):
    """Embedding, layers, final norm and head; `InternVL` runs the layers."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        text = config.text
        normal = nnx.initializers.normal
        self.embedding = parameter(rngs, normal(0.3), (text.vocab_size, text.width), ("vocab", "embed"), ())
        self.layers = TextLayer(config, stack=(text.layers,), rngs=rngs)
        self.norm = RMSNorm(text.width, text.norm_epsilon, rngs=rngs)
        if not text.tied_head:
            self.head = parameter(rngs, normal(text.width**-0.5), (text.width, text.vocab_size), ("embed", "vocab"), ())
        self.tied_head = text.tied_head

    @property
    def head_kernel(self) -> Float[Array, "D V"]:
        """What turns normed hidden states into logits; fetched outside a loop, it is gathered once for all of it."""
        if self.tied_head:
            return gathered(self.embedding, self.embedding.dtype).T
        return gathered(self.head, self.head.dtype)

    def embed(self, ids: Int[Array, "B ..."]) -> Float[Array, "B ... D"]:
        """Embeddings of tokens.

        Under a mesh each device looks all rows up in the channels it keeps, and then the rows are exchanged: a few activations
        travel, not the table.
        """
        x = constrain(self.embedding[ids], "slice", *(None for _ in ids.shape[1:]), "embed")
        return constrain(x, "batch")
