"""InternVL, with the two calls that training and decoding use: `prefill` and `extend`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from aesthetic_jax.models.attention import (
    as_cached,
    attention,
    choose_backend,
    shared_prompt_attention,
)
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.language import LanguageModel, RopeTable, TextLayer, rope_table
from aesthetic_jax.models.layers import Linear, scan_layers
from aesthetic_jax.models.sharding import constrain, parameter_shardings
from aesthetic_jax.models.vision import Projector, VisionTower, pixel_shuffle

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, for red, green and blue in 0..1
IMAGE_STD = (0.229, 0.224, 0.225)

Parameters = dict[str, Any]  # nested by module and parameter name; the leaves are arrays
AnyArray = Array | np.ndarray


class PromptCache(NamedTuple):
    """What `prefill` returns for `extend`: one entry per prompt, shared by all its completions."""

    keys: Float[Array, "L B K E P"]
    values: Float[Array, "L B K P E"]
    # True at tokens, which come first; padding is moved to the end.
    mask: Bool[Array, "B P"]
    # Normed hidden state of the last prompt token, which predicts the first completion token.
    last_hidden: Float[Array, "B D"]


class SuffixCache(NamedTuple):
    """Keys and values of the completions' own tokens while decoding, filled from the left."""

    keys: Float[Array, "L B G K E S"]
    values: Float[Array, "L B G K S E"]
    filled: Int[Array, ""]  # number of tokens written, the same for every completion


class UnstackedLayer(NamedTuple):
    """One decoder layer with the prompt's keys and values; see `InternVL.unstack`."""

    layer: TextLayer
    prompt_keys: Float[Array, "B K E P"]
    prompt_values: Float[Array, "B K P E"]


def abstract_model(
    config: InternVLConfig, mesh: Mesh | AbstractMesh | None = None
) -> tuple[nnx.GraphDef, Parameters]:
    """Graph and parameters of a model as ShapeDtypeStructs; nothing is computed.

    Args:
        config: the model's config.
        mesh: parameters get their NamedSharding on this mesh by the sharding rules; None: no
            shardings.

    Raises:
        UserError: the mesh doesn't divide a parameter.
    """
    model = nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    shardings = {} if mesh is None else parameter_shardings(model, mesh)
    parameters = {}
    for keys, x in nnx.to_flat_state(state):
        path = tuple(map(str, keys))
        parameters[path] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings.get(path))
    return graph, traverse_util.unflatten_dict(parameters)


def normalize(tiles: UInt8[AnyArray, "*batch X X 3"]) -> Float[Array, "*batch X X 3"]:
    """Pixels as InternVL expects them: scaled to 0..1, then by ImageNet's mean and deviation."""
    scaled = jnp.asarray(tiles).astype(jnp.float32) / 255
    return (scaled - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)


class InternVL(nnx.Module):
    """InternVL 2.5 / 3: InternViT, pixel shuffle, MLP projector and Qwen2 with causal attention."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.projector = Projector(config, rngs=rngs)
        self.language = LanguageModel(config, rngs=rngs)
        self.config = config

    def vision_features(
        self, tiles: Shaped[AnyArray, "*batch X X 3"]
    ) -> Float[Array, "*batch Q C"]:
        """Features of image tiles before the projector: Q = config.tokens_per_tile per tile.

        Args:
            tiles: uint8, or float32 as from `normalize`.
        """
        x = normalize(tiles) if tiles.dtype == jnp.uint8 else jnp.asarray(tiles)
        x = x.reshape(-1, *tiles.shape[-3:]).astype(self.config.dtype)
        x = self.vision(x, self.config.remat, choose_backend(self.config))
        grid = self.config.vision.grid
        x = pixel_shuffle(x.reshape(-1, grid, grid, x.shape[-1]), self.config.shuffle)
        return x.reshape(*tiles.shape[:-3], *x.shape[1:])

    def image_features(self, tiles: Shaped[AnyArray, "*batch X X 3"]) -> Float[Array, "*batch Q D"]:
        """Language-model embeddings of image tiles; `tiles` as in `vision_features`."""
        return self._project(self.vision_features(tiles))

    def prefill(
        self,
        tiles: Shaped[AnyArray, "B N X X 3"] | None,
        prompt_ids: Int[Array, "B P"],
        prompt_mask: Bool[Array, "B P"],
        features: Float[Array, "B N Q C"] | None = None,
    ) -> PromptCache:
        """Runs the vision tower once per image tile and the language model once per prompt.

        Args:
            tiles: in the order of their image tokens, as in `vision_features`; prompts with fewer
                than N tiles are padded at the end. None: no images, or `features` are given.
            prompt_ids: padded on the left or the right.
            prompt_mask: True at tokens.
            features: from `vision_features`; used in place of the tiles.
        """
        if features is None and tiles is not None:
            features = self.vision_features(tiles)
        images = None if features is None else self._project(features)
        x = _reorder(self._embed(prompt_ids, images), _tokens_first(prompt_mask))
        hidden, keys, values = self._forward(x)
        count = prompt_mask.sum(axis=1, keepdims=True)
        last_hidden = jnp.take_along_axis(hidden, count[..., None] - 1, axis=1)[:, 0]
        return PromptCache(keys, values, jnp.arange(prompt_mask.shape[1]) < count, last_hidden)

    def unstack(self, prompt: PromptCache) -> list[UnstackedLayer]:
        """The layers and the prompt's keys and values as separate arrays; `extend` loops over them.

        For decoding on CPUs: in a scan, XLA's CPU code copies each layer's parameters again for
        every token. Called outside the loop over tokens this copies them once, and transposes the
        kernels into the order in which they multiply fastest.
        """
        graph, parameters = nnx.split(self.language.layers)
        stacked = (parameters, prompt.keys, prompt.values)
        unstacked = []
        for i in range(self.config.text.layers):
            layer_parameters, keys, values = jax.tree.map(lambda x, i=i: x[i], stacked)
            layer = nnx.merge(graph, layer_parameters)
            for _, module in nnx.iter_modules(layer):
                if isinstance(module, Linear):
                    module.transpose_kernel()
            unstacked.append(UnstackedLayer(layer, keys, values))
        return unstacked

    def extend(
        self,
        prompt: PromptCache,
        completion_ids: Int[Array, "B G T"],
        suffix: SuffixCache | None = None,
        unstacked: list[UnstackedLayer] | None = None,
    ) -> tuple[Float[Array, "B G T D"], SuffixCache | None]:
        """Continues G completions of each prompt on the prompt's shared cache.

        Training: without a suffix cache the T tokens are the completions' first and see each other
        causally. Decoding: with a suffix cache the T tokens follow its `filled` tokens and are
        appended to it; T is usually 1.

        Args:
            prompt: from `prefill`.
            completion_ids: the T tokens.
            suffix: from `init_suffix`, or from the previous call.
            unstacked: from `unstack`, of the same prompt; None: the layers are scanned.

        Returns:
            Normed hidden states ([..., t] predicts token t + 1), and the grown suffix cache.
        """
        shape = completion_ids.shape
        filled = 0 if suffix is None else suffix.filled
        steps = filled + jnp.arange(shape[2])
        positions = prompt.mask.sum(1)[:, None, None] + jnp.broadcast_to(steps, shape)
        rope = self._rope_table(positions.reshape(-1))
        backend = choose_backend(self.config) if suffix is None else "xla"
        x = self.language.embed(completion_ids).astype(self.config.dtype).reshape(-1, self.width)

        def step(layer, carry, slices):
            x, suffix = carry
            index, prompt_keys, prompt_values = slices
            queries, keys, values = (y.reshape(*shape, *y.shape[1:]) for y in layer.qkv(x, rope))
            keys, values = as_cached(keys, values)
            if suffix is not None:
                suffix = suffix._replace(
                    keys=jax.lax.dynamic_update_slice(
                        suffix.keys, keys[None], (index, 0, 0, 0, 0, filled)
                    ),
                    values=jax.lax.dynamic_update_slice(
                        suffix.values, values[None], (index, 0, 0, 0, filled, 0)
                    ),
                )
                keys, values = suffix.keys[index], suffix.values[index]
            cached = prompt_keys, prompt_values, prompt.mask, keys, values
            attended = shared_prompt_attention(queries, *cached, filled, backend=backend)
            return (layer.after_attention(x, attended), suffix), None

        if unstacked is None:
            slices = (jnp.arange(self.config.text.layers), prompt.keys, prompt.values)
            remat = self.config.remat if suffix is None else "none"
            (x, suffix), _ = scan_layers(self.language.layers, step, (x, suffix), slices, remat)
        else:
            for index, (layer, *prompt_slices) in enumerate(unstacked):
                (x, suffix), _ = step(layer, (x, suffix), (index, *prompt_slices))
        if suffix is not None:
            suffix = suffix._replace(filled=filled + shape[2])
        return self.language.norm(x).reshape(*shape, -1), suffix

    def init_suffix(self, batch: int, group: int, length: int) -> SuffixCache:
        """An empty suffix cache for B x G completions of up to `length` tokens."""
        text = self.config.text
        leading = text.layers, batch, group, text.kv_heads

        def empty(*trailing):
            x = jnp.zeros((*leading, *trailing), self.config.dtype)
            return constrain(x, None, "batch", None, "kv_heads")

        return SuffixCache(
            empty(text.head_dim, length), empty(length, text.head_dim), jnp.zeros((), jnp.int32)
        )

    def logits(
        self, hidden: Float[Array, "*tokens D"], head: Float[Array, "D V"] | None = None
    ) -> Float[Array, "*tokens V"]:
        """Logits of normed hidden states, always in float32.

        Args:
            hidden: from `extend`.
            head: the language model's `head_kernel`, for loops that read it once outside; None:
                read here.
        """
        head = self.language.head_kernel if head is None else head
        return hidden.astype(jnp.float32) @ head.astype(jnp.float32)

    def __call__(
        self,
        input_ids: Int[AnyArray, "B S"],
        pixel_values: Shaped[AnyArray, "N X X 3"] | None = None,
        attention_mask: Shaped[AnyArray, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """The plain forward pass; equals transformers' `InternVLForConditionalGeneration`.

        Args:
            input_ids: each image token takes one feature, in reading order over the whole batch.
            pixel_values: normalised float32 tiles, or uint8 ones; None or N = 0: no images.
            attention_mask: non-zero at tokens, zero at padding (left or right); None: no padding.
        """
        if attention_mask is None:
            mask = jnp.ones(input_ids.shape, bool)
        else:
            mask = jnp.asarray(attention_mask).astype(bool)
        images = None
        if pixel_values is not None and pixel_values.shape[0]:
            images = self.image_features(jnp.asarray(pixel_values)).reshape(1, -1, self.width)
        x = self._embed(jnp.asarray(input_ids).reshape(1, -1), images)
        x = x.reshape(*input_ids.shape, -1)
        order = _tokens_first(mask)
        hidden, _, _ = self._forward(_reorder(x, order))
        return self.logits(_reorder(hidden, jnp.argsort(order, axis=1)))

    @property
    def width(self) -> int:
        """The language model's width D."""
        return self.config.text.width

    def _project(self, features: Float[Array, "*batch C"]) -> Float[Array, "*batch D"]:
        rows = self.projector(features.reshape(-1, features.shape[-1]))
        return rows.reshape(*features.shape[:-1], -1)

    def _embed(
        self, ids: Int[Array, "B S"], images: Float[Array, "B *tokens D"] | None
    ) -> Float[Array, "B S D"]:
        """Embeddings of tokens, with those of image tokens replaced by the row's image features."""
        x = self.language.embed(ids).astype(self.config.dtype)
        if images is None or not images.size:
            return x
        is_image = ids == self.config.image_token
        return _insert_image_features(x, is_image, images.reshape(ids.shape[0], -1, self.width))

    def _rope_table(self, positions: Int[Array, " rows"]) -> RopeTable:
        return rope_table(positions, self.config.text.head_dim, self.config.text.rope_theta)

    def _forward(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S D"], Float[Array, "L B K E S"], Float[Array, "L B K S E"]]:
        """Causal pass over rows with padding at the end.

        Returns:
            Normed hidden states, and every layer's keys and values in the layout of the caches.
        """
        batch, length = x.shape[:2]
        rope = self._rope_table(jnp.tile(jnp.arange(length), batch))
        backend = choose_backend(self.config)

        def step(layer, x, _):
            queries, keys, values = (
                y.reshape(batch, length, *y.shape[1:]) for y in layer.qkv(x, rope)
            )
            cached = as_cached(keys, values)
            attended = attention(queries, keys, values, causal=True, backend=backend)
            return layer.after_attention(x, attended), cached

        rows = x.reshape(-1, self.width)
        rows, (keys, values) = scan_layers(
            self.language.layers, step, rows, remat=self.config.remat
        )
        return self.language.norm(rows).reshape(batch, length, -1), keys, values


def _insert_image_features(
    x: Float[Array, "B S D"], is_image: Bool[Array, "B S"], features: Float[Array, "B M D"]
) -> Float[Array, "B S D"]:
    """Replaces x at each row's image tokens with the row's features, in order."""
    order = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
    at_tokens = jnp.take_along_axis(features, order[..., None], axis=1)
    return jnp.where(is_image[..., None], at_tokens, x)


def _tokens_first(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Indices that move tokens before padding, in order: causal attention then skips padding."""
    return jnp.argsort(~mask, axis=1, stable=True)


def _reorder(x: Float[Array, "B S D"], order: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return jnp.take_along_axis(x, order[..., None], axis=1)
