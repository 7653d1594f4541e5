"""Sampling completions: one prefill a prompt, then token by token on the prompt's shared cache.

Noise is keyed by what it belongs to: fold_in(fold_in(fold_in(key, sample), completion), position). A rollout is the same
whatever the batch's order, its padding or its mesh.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from aesthetic_jax.models.attention import target_platform
from aesthetic_jax.models.internvl import InternVL, PromptCache, SuffixCache
from aesthetic_jax.models.logprobs import completion_mask
from aesthetic_jax.models.sharding import constrain
from aesthetic_jax.models.splash import LANES


class Rollout(NamedTuple):
    """G sampled completions of each prompt."""

    ids: Int[Array, "B G T"]  # padded behind the end token
    mask: Bool[Array, "B G T"]  # True up to and including the end token
    logprobs: Float[Array, "B G T"]  # of the sampled tokens, full vocabulary, at the sampling temperature; 0 at padding
    ended: Bool[Array, "B G"]  # False where max_length cut the completion off


def categorical_by_blocks(key: Key[Array, ""], scores: Float[Array, " V"]) -> Int[Array, ""]:
    """An index drawn with probability softmax(scores), as `jax.random.categorical` does, but with noise for some 2 sqrt(V).

    First a block of indices is drawn by its whole probability, then one index of it. One of score -inf is never drawn.
    """
    block = LANES * math.ceil(scores.size**0.5 / LANES)  # in whole vector registers on TPUs
    blocks = jnp.pad(scores, (0, -scores.size % block), constant_values=-jnp.inf).reshape(-1, block)
    first, second = jax.random.split(key)
    chosen = jax.random.categorical(first, jax.nn.logsumexp(blocks, axis=-1))
    return chosen * block + jax.random.categorical(second, blocks[chosen])


class _Decoding(NamedTuple):
    position: Int[Array, ""]
    hidden: Float[Array, "B G D"]  # predicts the token at `position`
    suffix: SuffixCache
    ended: Bool[Array, "B G"]
    ids: Int[Array, "B G T"]
    logprobs: Float[Array, "B G T"]


def sample_completions(
    model: InternVL,
    prompt: PromptCache,
    sample_ids: Int[Array, " B"],
    key: Key[Array, ""],
    *,
    group: int,
    max_length: int,
    end_token: int,
    pad_token: int,
    temperature: float = 1.0,
) -> Rollout:
    """Draws `group` completions of every prompt, stopping when all have ended.

    Args:
        sample_ids: what the noise of each prompt is keyed by.
        temperature: of the distribution drawn from (full vocabulary, no truncation); 0: the most likely token.

    Image tokens are never drawn: they would have to be replaced by features that don't exist. The log-probabilities are
    those of the whole vocabulary all the same, as the trainer computes them.
    """
    batch = prompt.mask.shape[0]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = jax.vmap(fold, in_axes=(0, None))(fold(key, sample_ids), jnp.arange(group))
    head = model.language.head_kernel
    allowed = jnp.arange(model.config.text.vocab_size) != model.config.image_token

    unstacked = model.unstack(prompt) if target_platform() == "cpu" else None

    def draw(state: _Decoding) -> tuple[Array, Array]:
        logprobs = jax.nn.log_softmax(model.logits(state.hidden, head) / (temperature or 1.0))
        scores = jnp.where(allowed, logprobs, -jnp.inf)
        if temperature:
            at_position = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, state.position)
            token = jax.vmap(jax.vmap(categorical_by_blocks))(at_position, scores)
        else:
            token = jnp.argmax(scores, axis=-1)
        token = token.astype(jnp.int32)
        return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]

    def step(state: _Decoding) -> _Decoding:
        token, logprob = draw(state)
        token = jnp.where(state.ended, pad_token, token)
        logprob = jnp.where(state.ended, 0.0, logprob)
        hidden, suffix = model.extend(prompt, token[..., None], state.suffix, unstacked)
        at = (0, 0, state.position)
        return _Decoding(
            position=state.position + 1,
            hidden=constrain(hidden[..., 0, :], "batch"),
            suffix=suffix,
            ended=state.ended | (token == end_token),
            ids=jax.lax.dynamic_update_slice(state.ids, token[..., None], at),
            logprobs=jax.lax.dynamic_update_slice(state.logprobs, logprob[..., None], at),
        )

    start = _Decoding(
        position=jnp.zeros((), jnp.int32),
        hidden=constrain(jnp.broadcast_to(prompt.last_hidden[:, None], (batch, group, model.width)), "batch"),
        suffix=model.init_suffix(batch, group, max_length),
        ended=constrain(jnp.zeros((batch, group), bool), "batch"),
        ids=constrain(jnp.full((batch, group, max_length), pad_token, jnp.int32), "batch"),
        logprobs=constrain(jnp.zeros((batch, group, max_length), jnp.float32), "batch"),
    )
    end = jax.lax.while_loop(lambda state: (state.position < max_length) & ~state.ended.all(), step, start)
    mask = completion_mask(end.ids, end_token) & (jnp.arange(max_length) < end.position)
    return Rollout(end.ids, mask, end.logprobs, end.ended)
