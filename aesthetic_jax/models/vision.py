"""InternViT, pixel shuffle and projector: from image tiles to language-model embeddings.

Shapes: M tiles of X pixels a side, R x R patches a tile, W the tower's width, C = W * shuffle^2.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from aesthetic_jax.models.attention import attention
from aesthetic_jax.models.config import InternVLConfig, VisionConfig
from aesthetic_jax.models.layers import LayerNorm, Linear, RMSNorm, parameter, scan_layers
from aesthetic_jax.models.sharding import constrain

_NORMS = {"layer_norm": LayerNorm, "rms_norm": RMSNorm}


class VisionLayer(nnx.Module):
    """Pre-norm attention and MLP with LayerScale on both branches."""

    def __init__(self, config: VisionConfig, *, stack: tuple[int, ...], rngs: nnx.Rngs):
        width, norm = config.width, _NORMS[config.norm]
        linear = functools.partial(Linear, stack=stack, rngs=rngs)
        damped = (2 * config.layers) ** -0.5  # bounds the residual stream of a deep model
        self.norm1 = norm(width, config.norm_epsilon, stack=stack, rngs=rngs)
        self.query = linear(width, width, ("embed", "heads"), bias=config.qkv_bias)
        self.key = linear(width, width, ("embed", "heads"), bias=config.qkv_bias)
        self.value = linear(width, width, ("embed", "heads"), bias=config.qkv_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(width, config.norm_epsilon, stack=stack, rngs=rngs)
            self.key_norm = RMSNorm(width, config.norm_epsilon, stack=stack, rngs=rngs)
        self.out = linear(width, width, ("heads", "embed"), bias=True, gain=damped)
        self.norm2 = norm(width, config.norm_epsilon, stack=stack, rngs=rngs)
        self.up = linear(width, config.mlp_width, ("embed", "mlp"), bias=True)
        self.down = linear(config.mlp_width, width, ("mlp", "embed"), bias=True, gain=damped)
        scale_init = nnx.initializers.constant(config.layer_scale)
        self.scale1 = parameter(rngs, scale_init, (width,), ("norm",), stack)
        self.scale2 = parameter(rngs, scale_init, (width,), ("norm",), stack)
        self.heads = config.heads
        self.qk_norm = config.qk_norm

    def __call__(
        self, x: Float[Array, "rows W"], tiles: int, backend: str = "xla"
    ) -> Float[Array, "rows W"]:
        """One layer over the tokens of all tiles, each attending to the tokens of its own tile.

        Args:
            x: hidden states, tile by tile: rows = tiles * (1 + patches).
            tiles: number of tiles.
            backend: from `attention.choose_backend`.
        """
        h = self.norm1(x)
        queries, keys, values = self.query(h), self.key(h), self.value(h)
        if self.qk_norm:  # over all heads at once
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        split = (tiles, -1, self.heads, x.shape[-1] // self.heads)
        attended = attention(
            queries.reshape(split), keys.reshape(split), values.reshape(split), backend=backend
        )
        out = self.out(attended.reshape(x.shape))
        x = constrain(x + out * self.scale1.astype(x.dtype), "batch")
        h = constrain(jax.nn.gelu(self.up(self.norm2(x)), approximate=False), "batch", "mlp")
        return constrain(x + self.down(h) * self.scale2.astype(x.dtype), "batch")


class VisionTower(nnx.Module):
    """InternViT: tiles in, patch features out; the class token's output is dropped."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        # As large as the patch embeddings, so that positions differ clearly from the start.
        normal = nnx.initializers.normal(0.3)
        num_patches = config.grid**2
        self.patch_embed = Linear(
            3 * config.patch_size**2, config.width, ("patch", "embed"), bias=True, rngs=rngs
        )
        self.class_token = parameter(rngs, normal, (config.width,), ("embed",), ())
        self.positions = parameter(
            rngs, normal, (1 + num_patches, config.width), ("positions", "embed"), ()
        )
        self.layers = VisionLayer(config, stack=(config.layers,), rngs=rngs)
        self.config = config

    def __call__(
        self, tiles: Float[Array, "M X X 3"], remat: str = "none", backend: str = "xla"
    ) -> Float[Array, "M patches W"]:
        """Features of the patches of M tiles, row by row.

        Args:
            tiles: normalised, X pixels a side, in the compute dtype.
            remat: see InternVLConfig.
            backend: from `attention.choose_backend`.
        """
        count, grid, patch = tiles.shape[0], self.config.grid, self.config.patch_size
        patches = tiles.reshape(count, grid, patch, grid, patch, 3).swapaxes(2, 3)
        x = self.patch_embed(patches.reshape(count * grid**2, -1)).reshape(count, grid**2, -1)
        class_token = jnp.broadcast_to(self.class_token.astype(x.dtype), (count, 1, x.shape[-1]))
        x = jnp.concatenate([class_token, x], axis=1)
        x = constrain(x + self.positions.astype(x.dtype), "batch")
        rows, _ = scan_layers(
            self.layers,
            lambda layer, rows, _: (layer(rows, count, backend), None),
            x.reshape(-1, x.shape[-1]),
            remat=remat,
        )
        return rows.reshape(x.shape)[:, 1:]


def pixel_shuffle(
    x: Float[Array, "M R R W"], factor: int
) -> Float[Array, "M (R//{factor})**2 W*{factor}**2"]:
    """Merges each factor x factor block of patches into one vector; row-major within and between.

    InternVL's `pixel_shuffle`, version v2. For factor 2:
    out[i, j] = concat(x[2i, 2j], x[2i, 2j+1], x[2i+1, 2j], x[2i+1, 2j+1]).
    """
    count, side, _, width = x.shape
    x = x.reshape(count, side // factor, factor, side // factor, factor, width).swapaxes(2, 3)
    return x.reshape(count, (side // factor) ** 2, factor**2 * width)


class Projector(nnx.Module):
    """Norm, linear, GELU, linear: from shuffled patch features to the language model's width."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        width_in, width = config.vision.width * config.shuffle**2, config.text.width
        self.norm = LayerNorm(width_in, 1e-5, rngs=rngs)  # torch's default; the tower uses 1e-6
        self.up = Linear(width_in, width, ("embed", "mlp"), bias=True, rngs=rngs)
        self.down = Linear(width, width, ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "rows C"]) -> Float[Array, "rows D"]:
        """Projects each vector of `pixel_shuffle`."""
        return self.down(jax.nn.gelu(self.up(self.norm(x)), approximate=False))
