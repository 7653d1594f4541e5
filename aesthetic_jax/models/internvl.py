"""InternVL, and the two calls that every step is written with: `prefill` and `extend`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from aesthetic_jax.models.attention import as_cached, attention, choose_backend, shared_prompt_attention
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.language import LanguageModel, TextLayer, rotation
from aesthetic_jax.models.layers import Linear, scan_layers
from aesthetic_jax.models.sharding import constrain
from aesthetic_jax.models.vision import Projector, VisionTower, pixel_shuffle

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of channels red, green, blue in 0..1
IMAGE_STD = (0.229, 0.224, 0.225)


class PromptCache(NamedTuple):
    """What `prefill` leaves for `extend`: one entry a prompt, however many completions follow."""

    keys: Float[Array, "L B K E P"]
    values: Float[Array, "L B K P E"]
    mask: Bool[Array, "B P"]  # True at tokens, False at the padding behind them, wherever the prompt had it
    last_hidden: Float[
        Array, "B D"
    ]  # normed hidden state of the last prompt token: predicts the first completion token


class SuffixCache(NamedTuple):
    """Keys and values of the completions' own tokens, filled from the left while decoding."""

    keys: Float[Array, "L B G K E S"]
    values: Float[Array, "L B G K S E"]
    filled: Int[Array, ""]  # number of tokens that every completion has


def normalize(tiles: UInt8[Array, "... X X 3"]) -> Float[Array, "... X X 3"]:
    """Pixels as InternVL expects them: scaled to 0..1, minus ImageNet's mean, over its deviation."""
    return (tiles.astype(jnp.float32) / 255 - jnp.array(IMAGE_MEAN)) / jnp.array(IMAGE_STD)


def _place_images(
    text: Float[Array, "B S D"], is_image: Bool[Array, "B S"], features: Float[Array, "B M D"]
) -> Float[Array, "B S D"]:
    """Puts each row's features, in order, where the row's image tokens are."""
    order = jnp.clip(jnp.cumsum(is_image, axis=1) - 1, 0, features.shape[1] - 1)
    placed = jnp.take_along_axis(features, order[..., None], axis=1)
    return jnp.where(is_image[..., None], placed, text)


def _tokens_first(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Where each row's tokens are, in order, and then its padding: behind the tokens it is out of causal sight."""
    return jnp.argsort(~mask, axis=1, stable=True)


def _reorder(x: Float[Array, "B S D"], order: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    return jnp.take_along_axis(x, order[..., None], axis=1)


class InternVL(nnx.Module):
    """InternVL 2.5 / 3: InternViT, pixel shuffle, MLP projector and Qwen2, plain causal attention throughout."""

    def __init__(self, config: InternVLConfig, *, rngs: nnx.Rngs):
        self.vision = VisionTower(config.vision, rngs=rngs)
        self.projector = Projector(config, rngs=rngs)
        self.language = LanguageModel(config, rngs=rngs)
        self.config = config

    def vision_features(self, tiles: Array) -> Float[Array, "... Q C"]:
        """What the vision tower alone makes of image tiles: Q = config.tokens_per_tile vectors each, not yet projected.

        Args:
            tiles: [..., X, X, 3]; uint8, or float32 already normalised as by `normalize`.
        """
        if tiles.dtype == jnp.uint8:
            tiles = normalize(tiles)
        x = tiles.reshape(-1, *tiles.shape[-3:]).astype(self.config.dtype)
        x = self.vision(x, self.config.remat, choose_backend(self.config))
        grid = self.config.vision.grid
        x = pixel_shuffle(x.reshape(-1, grid, grid, x.shape[-1]), self.config.shuffle)
        return x.reshape(*tiles.shape[:-3], *x.shape[1:])

    def image_features(self, tiles: Array) -> Float[Array, "... Q D"]:
        """Language-model embeddings of image tiles, given as to `vision_features`."""
        return self._project(self.vision_features(tiles))

    def prefill(
        self, images: Array | None, prompt_ids: Int[Array, "B P"], prompt_mask: Bool[Array, "B P"]
    ) -> PromptCache:
        """Runs the vision tower once per image tile and the language model once per prompt.

        Args:
            images: tiles [B, N, X, X, 3] in the order of their tokens, or what `vision_features` made of them,
                [B, N, Q, C]; prompts with fewer tiles are filled up at the end. None: no images.
            prompt_ids: left- or right-padded.
            prompt_mask: True at tokens.
        """
        if images is not None:
            images = self.image_features(images) if images.ndim == 5 else self._project(images)
        x = _reorder(self._embed(prompt_ids, images), _tokens_first(prompt_mask))
        hidden, (keys, values) = self._forward(x)
        count = prompt_mask.sum(axis=1, keepdims=True)
        last_hidden = jnp.take_along_axis(hidden, count[..., None] - 1, axis=1)[:, 0]
        return PromptCache(keys, values, jnp.arange(prompt_mask.shape[1]) < count, last_hidden)

    def unstack(self, prompt: PromptCache) -> list[tuple[TextLayer, Array, Array]]:
        """Each layer, and its keys and values of the prompt, as arrays of their own: what `extend` may run in place of a scan.

        For decoding on CPUs, whose compiler copies the parameters that a scan slices, at every token anew. Taken outside
        the loop over tokens they are copied once, into the order in which they are multiplied fastest.
        """
        graph, parameters = nnx.split(self.language.layers)
        stacked = (parameters, prompt.keys, prompt.values)
        unstacked = []
        for i in range(self.config.text.layers):
            slices, keys, values = jax.tree.map(lambda x, i=i: x[i], stacked)
            layer = nnx.merge(graph, slices)
            for _, module in nnx.iter_modules(layer):
                if isinstance(module, Linear):
                    module.put_output_first()
            unstacked.append((layer, keys, values))
        return unstacked

    def extend(
        self,
        prompt: PromptCache,
        completion_ids: Int[Array, "B G T"],
        suffix: SuffixCache | None = None,
        unstacked: list[tuple[TextLayer, Array, Array]] | None = None,
    ) -> tuple[Float[Array, "B G T D"], SuffixCache | None]:
        """Continues G completions of each prompt on that prompt's one cache.

        Without a suffix cache the T tokens are the completions' first ones and see each other causally: training. With one
        they follow the `suffix.filled` tokens before them and are written behind those: decoding, usually T = 1.

        Args:
            unstacked: what `unstack` made of this prompt; None: the layers are scanned.

        Returns:
            Normed hidden states ([..., t] predicts token t + 1) and the suffix cache, grown by T.
        """
        text = self.config.text
        length = completion_ids.shape[2]
        filled = 0 if suffix is None else suffix.filled
        steps = filled + jnp.arange(length)
        positions = prompt.mask.sum(1)[:, None, None] + jnp.broadcast_to(steps, completion_ids.shape)
        rotary = rotation(positions.reshape(-1), text.head_dim, text.rope_theta)
        backend = choose_backend(self.config) if suffix is None else "xla"
        x = self.language.embed(completion_ids).astype(self.config.dtype).reshape(-1, self.width)

        def step(layer, carry, slices):
            x, suffix = carry
            index, prompt_keys, prompt_values = slices

            def attend(queries, keys, values):
                nonlocal suffix
                queries, keys, values = (
                    y.reshape(*completion_ids.shape, *y.shape[1:]) for y in (queries, keys, values)
                )
                keys, values = as_cached(keys, values)
                if suffix is not None:
                    suffix = suffix._replace(
                        keys=jax.lax.dynamic_update_slice(suffix.keys, keys[None], (index, 0, 0, 0, 0, filled)),
                        values=jax.lax.dynamic_update_slice(suffix.values, values[None], (index, 0, 0, 0, filled, 0)),
                    )
                    keys, values = suffix.keys[index], suffix.values[index]
                prompt_slices = prompt_keys, prompt_values, prompt.mask
                return shared_prompt_attention(queries, *prompt_slices, keys, values, filled, backend=backend)

            x = layer(x, rotary, attend)
            return (x, suffix), None

        if unstacked is None:
            layers = (jnp.arange(text.layers), prompt.keys, prompt.values)
            remat = self.config.remat if suffix is None else "none"
            (x, suffix), _ = scan_layers(self.language.layers, step, (x, suffix), layers, remat)
        else:
            for index, (layer, *cache) in enumerate(unstacked):
                (x, suffix), _ = step(layer, (x, suffix), (index, *cache))
        if suffix is not None:
            suffix = suffix._replace(filled=filled + length)
        return self.language.norm(x).reshape(*completion_ids.shape, -1), suffix

    def init_suffix(self, batch: int, group: int, length: int) -> SuffixCache:
        """An empty suffix cache for B x G completions of up to `length` tokens."""
        text = self.config.text
        heads = text.layers, batch, group, text.kv_heads

        def empty(*shape):
            return constrain(jnp.zeros((*heads, *shape), self.config.dtype), None, "batch", None, "kv_heads")

        return SuffixCache(empty(text.head_dim, length), empty(length, text.head_dim), jnp.zeros((), jnp.int32))

    def logits(self, hidden: Float[Array, "... D"], head: Float[Array, "D V"] | None = None) -> Float[Array, "... V"]:
        """Logits of normed hidden states, in float32 whatever the compute dtype.

        Args:
            hidden: of `extend`.
            head: the language model's `head_kernel`, for loops that fetch it once outside.
        """
        head = self.language.head_kernel if head is None else head
        return hidden.astype(jnp.float32) @ head.astype(jnp.float32)

    def __call__(
        self, input_ids: Int[Array, "B S"], pixel_values: Array | None = None, attention_mask: Array | None = None
    ) -> Float[Array, "B S V"]:
        """The plain forward pass, as transformers' `InternVLForConditionalGeneration`.

        Args:
            input_ids: token ids; each image token takes one feature, in reading order over the whole batch.
            pixel_values: [N, X, X, 3] float32 normalised tiles (uint8 ones are normalised here); None or N = 0: no images.
            attention_mask: non-zero at tokens, zero at padding (left or right); None: no padding.
        """
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        features = None
        if pixel_values is not None and pixel_values.shape[0]:
            features = self.image_features(jnp.asarray(pixel_values)).reshape(1, -1, self.width)
        x = self._embed(jnp.asarray(input_ids).reshape(1, -1), features).reshape(*input_ids.shape, -1)
        order = _tokens_first(mask)
        hidden, _ = self._forward(_reorder(x, order))
        return self.logits(_reorder(hidden, jnp.argsort(order, axis=1)))

    @property
    def width(self) -> int:
        """The language model's width D."""
        return self.config.text.width

    def _project(self, features: Float[Array, "... C"]) -> Float[Array, "... D"]:
        return self.projector(features.reshape(-1, features.shape[-1])).reshape(*features.shape[:-1], -1)

    def _embed(self, ids: Int[Array, "B S"], features: Array | None) -> Float[Array, "B S D"]:
        x = self.language.embed(ids).astype(self.config.dtype)
        if features is None or not features.size:
            return x
        return _place_images(x, ids == self.config.image_token, features.reshape(ids.shape[0], -1, self.width))

    def _forward(self, x: Float[Array, "B S D"]) -> tuple:
        """Causal pass over rows that begin with their tokens: normed hidden states and every layer's keys and values."""
        text = self.config.text
        batch, length = x.shape[:2]
        rotary = rotation(jnp.tile(jnp.arange(length), batch), text.head_dim, text.rope_theta)
        backend = choose_backend(self.config)

        def step(layer, x, _):
            cache = ()

            def attend(queries, keys, values):
                nonlocal cache
                queries, keys, values = (y.reshape(batch, length, *y.shape[1:]) for y in (queries, keys, values))
                cache = as_cached(keys, values)
                return attention(queries, keys, values, causal=True, backend=backend)

            x = layer(x, rotary, attend)
            return x, cache

        x, cache = scan_layers(self.language.layers, step, x.reshape(-1, self.width), remat=self.config.remat)
        return self.language.norm(x).reshape(batch, length, -1), cache
