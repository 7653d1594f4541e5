"""Qwen2: rotary embedding, decoder layer, and the language model's parameters.

A layer leaves attention to its caller, which decides what each token sees: `InternVL` calls `qkv`,
one of the attention functions, and `after_attention`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.layers import Linear, Lora, RMSNorm, parameter
from aesthetic_jax.models.sharding import all_gather_parameter, constrain


class RopeTable(NamedTuple):
    """Rotary position embedding: cosine and sine of each token's angles, float32."""

    cos: Float[Array, "*tokens 1 E/2"]  # the same for every head
    sin: Float[Array, "*tokens 1 E/2"]


def rope_table(positions: Int[Array, "*tokens"], head_dim: int, theta: float) -> RopeTable:
    """The table for tokens at these positions; all layers share it."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return RopeTable(jnp.cos(angles), jnp.sin(angles))


def apply_rope(x: Float[Array, "*tokens H E"], rope: RopeTable) -> Float[Array, "*tokens H E"]:
    """Rotary position embedding in float32, halves convention: channel i pairs with i + E/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin], axis=-1
    ).astype(x.dtype)


class TextLayer(nnx.Module):
    """Pre-norm attention with grouped queries, then SwiGLU; the caller computes the attention."""

    def __init__(self, config: InternVLConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs):
        text = config.text
        width, heads, kv = text.width, text.heads * text.head_dim, text.kv_heads * text.head_dim
        lora = Lora(config.lora_rank, config.lora_alpha) if config.lora_rank else None
        linear = functools.partial(Linear, stack=stack, lora=lora, rngs=rngs)
        damped = (2 * text.layers) ** -0.5  # bounds the residual stream of a deep model
        self.norm1 = RMSNorm(width, text.norm_epsilon, stack=stack, rngs=rngs)
        self.query = linear(width, heads, ("embed", "heads"), bias=True)
        self.key = linear(width, kv, ("embed", "kv_heads"), bias=True)
        self.value = linear(width, kv, ("embed", "kv_heads"), bias=True)
        self.out = linear(heads, width, ("heads", "embed"), gain=damped)
        self.norm2 = RMSNorm(width, text.norm_epsilon, stack=stack, rngs=rngs)
        self.gate = linear(width, text.mlp_width, ("embed", "mlp"))
        self.up = linear(width, text.mlp_width, ("embed", "mlp"))
        self.down = linear(text.mlp_width, width, ("mlp", "embed"), gain=damped)
        self.head_dim = text.head_dim

    def qkv(
        self, x: Float[Array, "rows D"], rope: RopeTable
    ) -> tuple[Float[Array, "rows H E"], Float[Array, "rows K E"], Float[Array, "rows K E"]]:
        """Queries, keys and values of tokens, with RoPE applied to queries and keys.

        Args:
            x: hidden states, one row per token.
            rope: from `rope_table`, of the same tokens.
        """
        h = self.norm1(x)
        split = (len(x), -1, self.head_dim)
        queries = constrain(apply_rope(self.query(h).reshape(split), rope), "batch", "heads")
        keys = constrain(apply_rope(self.key(h).reshape(split), rope), "batch", "kv_heads")
        values = constrain(self.value(h).reshape(split), "batch", "kv_heads")
        return queries, keys, values

    def after_attention(
        self, x: Float[Array, "rows D"], attended: Float[Array, "*tokens H E"]
    ) -> Float[Array, "rows D"]:
        """The rest of the layer: output projection, MLP and both residual connections.

        Args:
            x: the hidden states that `qkv` read.
            attended: attention's output for the same tokens, in the order of the rows.
        """
        x = constrain(x + self.out(attended.reshape(len(x), -1)), "batch")
        h = self.norm2(x)
        h = constrain(jax.nn.silu(self.gate(h)) * self.up(h), "batch", "mlp")
        return constrain(x + self.down(h), "batch")


class LanguageModel(nnx.Module):
    """Embedding, layers, final norm and head; `InternVL` runs the layers."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        text = config.text
        normal = nnx.initializers.normal
        self.embedding = parameter(
            rngs, normal(0.3), (text.vocab_size, text.width), ("vocab", "embed"), ()
        )
        self.layers = TextLayer(config, stack=(text.layers,), rngs=rngs)
        self.norm = RMSNorm(text.width, text.norm_epsilon, rngs=rngs)
        if not text.tied_head:
            head_init = normal(text.width**-0.5)
            self.head = parameter(
                rngs, head_init, (text.width, text.vocab_size), ("embed", "vocab"), ()
            )
        self.tied_head = text.tied_head

    @property
    def head_kernel(self) -> Float[Array, "D V"]:
        """The kernel that maps normed hidden states to logits.

        Read it outside a loop: under a mesh every read is an all-gather.
        """
        if self.tied_head:
            return all_gather_parameter(self.embedding, self.embedding.dtype).T
        return all_gather_parameter(self.head, self.head.dtype)

    def embed(self, ids: Int[Array, "*tokens"]) -> Float[Array, "*tokens D"]:
        """Embeddings of tokens.

        Under a mesh each device looks up its own channels for all rows; then the rows are
        exchanged. This communicates a few activations instead of the table.
        """
        x = constrain(self.embedding[ids], "slice", *(None for _ in ids.shape[1:]), "embed")
        return constrain(x, "batch")
