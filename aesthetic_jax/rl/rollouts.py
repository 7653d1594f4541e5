"""Rollouts: one prefill per prompt, then G completions token by token on the prompt's shared cache.

Noise is keyed by fold_in(fold_in(fold_in(key, sample), completion), position), so a rollout is the
same under any batch order, padding or mesh.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.models.attention import target_platform
from aesthetic_jax.models.internvl import InternVL, Parameters, PromptCache, SuffixCache
from aesthetic_jax.models.logprobs import completion_mask
from aesthetic_jax.models.sharding import constrain, replicate_layers
from aesthetic_jax.models.splash import LANES


class Sampling(NamedTuple):
    """How completions are sampled."""

    group: int  # completions per prompt, G
    max_length: int  # largest number of tokens in a completion
    end_token: int  # ends a completion
    pad_token: int  # fills the rest of a row
    temperature: float = 1.0  # of the full vocabulary, no truncation; 0: the most likely token


class Rollout(NamedTuple):
    """G sampled completions of each prompt."""

    ids: Int[Array, "B G T"]  # padded after the end token
    mask: Bool[Array, "B G T"]  # True up to and including the end token
    # Of the sampled tokens: full vocabulary, at the sampling temperature; 0 at padding.
    logprobs: Float[Array, "B G T"]
    ended: Bool[Array, "B G"]  # False where max_length clipped the completion


class _DecodingState(NamedTuple):
    position: Int[Array, ""]
    hidden: Float[Array, "B G D"]  # predicts the token at `position`
    suffix: SuffixCache
    ended: Bool[Array, "B G"]
    ids: Int[Array, "B G T"]
    logprobs: Float[Array, "B G T"]


def rollout(
    parameters: Parameters,
    batch: Batch,
    key: Key[Array, ""],
    *,
    graph: nnx.GraphDef,
    sampling: Sampling,
    replicate: bool = True,
) -> Rollout:
    """Samples completions of a batch's prompts.

    Args:
        replicate: `config.mesh.replicate_for_rollout`: each device holds all layers while sampling.
    """
    model = nnx.merge(graph, parameters)
    if replicate:
        model.language.layers = replicate_layers(model.language.layers, model.config.dtype)
    prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask, batch.features)
    return sample_completions(model, prompt, batch.index, key, sampling)


def sample_completions(
    model: InternVL,
    prompt: PromptCache,
    sample_ids: Int[Array, " B"],
    key: Key[Array, ""],
    sampling: Sampling,
) -> Rollout:
    """Draws a group of completions of every prompt; stops when all have ended.

    Image tokens are never drawn: their embeddings come from images, and there are none. The
    log-probabilities are still those of the whole vocabulary, as the trainer computes them.

    Args:
        sample_ids: keys the noise of each prompt.
    """
    group, max_length, end_token, pad_token, temperature = sampling
    batch = prompt.mask.shape[0]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(fold, in_axes=(0, None))(fold(key, sample_ids), jnp.arange(group))
    head = model.language.head_kernel
    allowed = jnp.arange(model.config.text.vocab_size) != model.config.image_token
    unstacked = model.unstack(prompt) if target_platform() == "cpu" else None

    def draw(state: _DecodingState) -> tuple[Array, Array]:
        logprobs = jax.nn.log_softmax(model.logits(state.hidden, head) / (temperature or 1.0))
        scores = jnp.where(allowed, logprobs, -jnp.inf)
        if temperature:
            fold_position = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
            noise_keys = fold_position(keys, state.position)
            token = jax.vmap(jax.vmap(categorical_by_blocks))(noise_keys, scores)
        else:
            token = jnp.argmax(scores, axis=-1)
        token = token.astype(jnp.int32)
        return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]

    def step(state: _DecodingState) -> _DecodingState:
        token, logprob = draw(state)
        token = jnp.where(state.ended, pad_token, token)
        logprob = jnp.where(state.ended, 0.0, logprob)
        hidden, suffix = model.extend(prompt, token[..., None], state.suffix, unstacked)
        assert suffix is not None  # given a suffix cache, `extend` returns one
        start = (0, 0, state.position)
        return _DecodingState(
            position=state.position + 1,
            hidden=constrain(hidden[..., 0, :], "batch"),
            suffix=suffix,
            ended=state.ended | (token == end_token),
            ids=jax.lax.dynamic_update_slice(state.ids, token[..., None], start),
            logprobs=jax.lax.dynamic_update_slice(state.logprobs, logprob[..., None], start),
        )

    hidden = jnp.broadcast_to(prompt.last_hidden[:, None], (batch, group, model.width))
    state = _DecodingState(
        position=jnp.zeros((), jnp.int32),
        hidden=constrain(hidden, "batch"),
        suffix=model.init_suffix(batch, group, max_length),
        ended=constrain(jnp.zeros((batch, group), bool), "batch"),
        ids=constrain(jnp.full((batch, group, max_length), pad_token, jnp.int32), "batch"),
        logprobs=constrain(jnp.zeros((batch, group, max_length), jnp.float32), "batch"),
    )
    state = jax.lax.while_loop(
        lambda state: (state.position < max_length) & ~state.ended.all(), step, state
    )
    mask = completion_mask(state.ids, end_token) & (jnp.arange(max_length) < state.position)
    return Rollout(state.ids, mask, state.logprobs, state.ended)


def categorical_by_blocks(key: Key[Array, ""], scores: Float[Array, " V"]) -> Int[Array, ""]:
    """An index drawn with probability softmax(scores), from about 2 sqrt(V) random numbers.

    The same distribution as `jax.random.categorical`, which draws V numbers. First draws a block of
    indices by the block's total probability, then an index in it. Never draws an index with score
    -inf.
    """
    block = LANES * math.ceil(scores.size**0.5 / LANES)  # whole vector registers on TPUs
    blocks = jnp.pad(scores, (0, -scores.size % block), constant_values=-jnp.inf).reshape(-1, block)
    block_key, index_key = jax.random.split(key)
    chosen = jax.random.categorical(block_key, jax.nn.logsumexp(blocks, axis=-1))
    return chosen * block + jax.random.categorical(index_key, blocks[chosen])


def decode(
    ids: Int[np.ndarray, "B G T"], mask: Bool[np.ndarray, "B G T"], tokenizer: ChatTokenizer
) -> list[list[str]]:
    """Texts of a rollout, [B][G], without their end tokens."""
    return [
        [tokenizer.decode(row[keep]) for row, keep in zip(*group, strict=True)]
        for group in zip(ids, mask, strict=True)
    ]
