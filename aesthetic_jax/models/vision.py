"""InternViT, pixel shuffle and projector: from image tiles to language-model embeddings."""

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
        projection = dict(stack=stack, rngs=rngs)
        damped = (2 * config.layers) ** -0.5  # keeps the residual stream of a deep model in bounds
        self.norm1 = norm(width, config.norm_epsilon, **projection)
        self.query = Linear(width, width, ("embed", "heads"), bias=config.qkv_bias, **projection)
        self.key = Linear(width, width, ("embed", "heads"), bias=config.qkv_bias, **projection)
        self.value = Linear(width, width, ("embed", "heads"), bias=config.qkv_bias, **projection)
        if config.qk_norm:
            self.query_norm = RMSNorm(width, config.norm_epsilon, **projection)
            self.key_norm = RMSNorm(width, config.norm_epsilon, **projection)
        self.out = Linear(width, width, ("heads", "embed"), bias=True, gain=damped, **projection)
        self.norm2 = norm(width, config.norm_epsilon, **projection)
        self.up = Linear(width, config.mlp_width, ("embed", "mlp"), bias=True, **projection)
        self.down = Linear(config.mlp_width, width, ("mlp", "embed"), bias=True, gain=damped, **projection)
        scale = nnx.initializers.constant(config.layer_scale)
        self.scale1 = parameter(rngs, scale, (width,), ("norm",), stack)
        self.scale2 = parameter(rngs, scale, (width,), ("norm",), stack)
        self.heads = config.heads
        self.qk_norm = config.qk_norm

    def __call__(self, x: Float[Array, "M*S D"], tiles: int, backend: str = "xla") -> Float[Array, "M*S D"]:
        """One layer over M tiles of S = 1 + patches tokens, each attending to all of its tile."""
        h = self.norm1(x)
        queries, keys, values = self.query(h), self.key(h), self.value(h)
        if self.qk_norm:  # over the whole width, before it is cut into heads
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        split = (tiles, -1, self.heads, x.shape[-1] // self.heads)
        mixed = attention(queries.reshape(split), keys.reshape(split), values.reshape(split), backend=backend)
        x = constrain(x + self.out(mixed.reshape(x.shape)) * self.scale1.astype(x.dtype), "batch")
        h = constrain(jax.nn.gelu(self.up(self.norm2(x)), approximate=False), "batch", "mlp")
        return constrain(x + self.down(h) * self.scale2.astype(x.dtype), "batch")


class VisionTower(nnx.Module):
    """InternViT without its class token's output: tiles in, patch features out."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.3)  # of the size of the patch embeddings, so that places can be told apart
        patches = config.grid**2
        self.patch_embed = Linear(3 * config.patch_size**2, config.width, ("patch", "embed"), bias=True, rngs=rngs)
        self.class_token = parameter(rngs, normal, (config.width,), ("embed",), ())
        self.positions = parameter(rngs, normal, (1 + patches, config.width), ("positions", "embed"), ())
        self.layers = VisionLayer(config, stack=(config.layers,), rngs=rngs)
        self.config = config

    def __call__(
        self, tiles: Float[Array, "M X X 3"], remat: str = "none", backend: str = "xla"
    ) -> Float[Array, "M X/p*X/p D"]:
        """Features of M tiles of X pixels a side, patches row by row; `backend` of `attention.choose_backend`."""
        count, grid, patch = tiles.shape[0], self.config.grid, self.config.patch_size
        x = tiles.reshape(count, grid, patch, grid, patch, 3).swapaxes(2, 3).reshape(count * grid**2, -1)
        x = self.patch_embed(x).reshape(count, grid**2, -1)
        first = jnp.broadcast_to(self.class_token.astype(x.dtype), (count, 1, x.shape[-1]))
        x = constrain(jnp.concatenate([first, x], axis=1) + self.positions.astype(x.dtype), "batch")
        rows = x.reshape(-1, x.shape[-1])
        rows, _ = scan_layers(self.layers, lambda layer, x, _: (layer(x, count, backend), None), rows, remat=remat)
        return rows.reshape(x.shape)[:, 1:]


def pixel_shuffle(x: Float[Array, "M R R D"], factor: int) -> Float[Array, "M R/f*R/f f*f*D"]:
    """Merges each factor x factor block of patches into one token, row-major inside and outside the block.

    InternVL's `pixel_shuffle`, version v2: out[i, j] = concat(x[2i, 2j], x[2i, 2j+1], x[2i+1, 2j], x[2i+1, 2j+1]).
    """
    count, side, _, width = x.shape
    x = x.reshape(count, side // factor, factor, side // factor, factor, width).swapaxes(2, 3)
    return x.reshape(count, (side // factor) ** 2, factor**2 * width)


class Projector(nnx.Module):
    """Norm, linear, GELU, linear: shuffled patch features to the language model's width."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        width_in, width = config.vision.width * config.shuffle**2, config.text.width
        self.norm = LayerNorm(width_in, 1e-5, rngs=rngs)  # torch's default, unlike the tower's 1e-6
        self.up = Linear(width_in, width, ("embed", "mlp"), bias=True, rngs=rngs)
        self.down = Linear(width, width, ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "rows In"]) -> Float[Array, "rows D"]:
        """Projects each vector of `pixel_shuffle`."""
        return self.down(jax.nn.gelu(self.up(self.norm(x)), approximate=False))
