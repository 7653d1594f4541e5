"""Log-probabilities of completions, without ever holding logits for a whole sequence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.models.internvl import InternVL, PromptCache
from aesthetic_jax.models.sharding import constrain, row_shards

_CHUNK_TOKENS = 1024  # whose logits live at once on a device; 0.6 GB in float32 at Qwen2's vocabulary
_CHUNK_LOGITS = 2**26  # and no more numbers than this on a single device: 0.27 GB


def token_logprobs(
    model: InternVL, hidden: Float[Array, "B G T D"], targets: Int[Array, "B G T"], temperature: float = 1.0
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of each target and entropy of its distribution, float32 nats, of logits / temperature.

    Logits exist for a chunk of tokens at a time and are computed again in the backward pass.
    """
    batch, group, length = targets.shape
    shards = row_shards(batch)
    tokens = _CHUNK_TOKENS * shards
    if shards == 1:  # over several devices every chunk costs a sum of the head's gradient: few of them there
        tokens = min(tokens, _CHUNK_LOGITS // model.config.text.vocab_size)
    chunk = min(length, max(1, tokens // (batch * group)))
    chunks = -(-length // chunk)
    padding = chunks * chunk - length
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, 0), (0, padding)))

    head = model.language.head_kernel

    @jax.checkpoint
    def one_chunk(hidden, targets):
        logits = jax.nn.log_softmax(model.logits(constrain(hidden, "batch"), head) / temperature)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return chosen, -(jnp.exp(logits) * logits).sum(-1)

    def split(x):
        return jnp.moveaxis(x.reshape(batch, group, chunks, chunk, *x.shape[3:]), 2, 0)

    _, outputs = jax.lax.scan(lambda _, x: (None, one_chunk(*x)), None, (split(hidden), split(targets)))
    return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in outputs)


def completion_logprobs(
    model: InternVL, prompt: PromptCache, completion_ids: Int[Array, "B G T"], temperature: float = 1.0
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of every completion token given its prompt and the tokens before it, and the entropies there.

    What SFT (G = 1), the GRPO update and the reference model all read. Positions behind a completion's end hold values that
    the caller masks.
    """
    hidden, _ = model.extend(prompt, completion_ids[..., :-1])
    first = jnp.broadcast_to(prompt.last_hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1]))
    return token_logprobs(model, jnp.concatenate([first, hidden], axis=2), completion_ids, temperature)


def completion_mask(completion_ids: Int[Array, "B G T"], end_token: int) -> Bool[Array, "B G T"]:
    """True up to and including each completion's first end token."""
    ended = jnp.cumsum(completion_ids == end_token, axis=-1)
    return (ended - (completion_ids == end_token)) == 0
