"""Log-probabilities of completions, without materialising the logits of whole sequences."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.models.internvl import InternVL, PromptCache
from aesthetic_jax.models.sharding import map_row_shards

_CHUNK_TOKENS = 1024  # tokens whose logits a device holds at once
_CHUNK_LOGITS = 2**26  # at most this many logits at once: 0.27 GB


def token_logprobs(
    model: InternVL,
    hidden: Float[Array, "B G T D"],
    targets: Int[Array, "B G T"],
    temperature: float = 1.0,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of each target, and entropy of the distribution there.

    Both are of softmax(logits / temperature), float32, in nats. Logits exist for one chunk of
    tokens at a time; the backward pass recomputes them. Under a mesh each device processes its own
    rows, and the head's gradient is summed over devices once, after the last chunk.
    """

    def chunk_logprobs(hidden, targets, head):
        logits = model.logits(hidden.reshape(-1, hidden.shape[-1]), head)
        logprobs = jax.nn.log_softmax(logits / temperature)
        chosen = jnp.take_along_axis(logprobs, targets.reshape(-1, 1), axis=-1)
        entropies = -(jnp.exp(logprobs) * logprobs).sum(-1)
        return chosen.reshape(targets.shape), entropies.reshape(targets.shape)

    def logprobs_in_chunks(hidden, targets, head):
        batch, group, length = targets.shape
        chunk_tokens = min(_CHUNK_TOKENS, _CHUNK_LOGITS // head.shape[1])
        chunk = min(length, max(1, chunk_tokens // (batch * group)))
        num_chunks = -(-length // chunk)
        padding = num_chunks * chunk - length

        def split(x):
            x = jnp.pad(x, ((0, 0), (0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 3))
            return jnp.moveaxis(x.reshape(batch, group, num_chunks, chunk, *x.shape[3:]), 2, 0)

        # The backward pass begins with the last chunk, so keeping one chunk's logits is free.
        function = chunk_logprobs if num_chunks == 1 else jax.checkpoint(chunk_logprobs)
        _, outputs = jax.lax.scan(
            lambda _, x: (None, function(*x, head)), None, (split(hidden), split(targets))
        )
        return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in outputs)

    logprobs, entropies = map_row_shards(
        logprobs_in_chunks, hidden, targets, model.language.head_kernel
    )
    return logprobs, entropies


def completion_logprobs(
    model: InternVL,
    prompt: PromptCache,
    completion_ids: Int[Array, "B G T"],
    temperature: float = 1.0,
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of each completion token given everything before it, and the entropy there.

    SFT (G = 1), the GRPO update and the reference model all use this. Values after a completion's
    end are meaningless; callers mask them.
    """
    hidden, _ = model.extend(prompt, completion_ids[..., :-1])
    first = jnp.broadcast_to(
        prompt.last_hidden[:, None, None], (*hidden.shape[:2], 1, hidden.shape[-1])
    )
    hidden = jnp.concatenate([first, hidden], axis=2)
    return token_logprobs(model, hidden, completion_ids, temperature)


def completion_mask(completion_ids: Int[Array, "B G T"], end_token: int) -> Bool[Array, "B G T"]:
    """True up to and including each completion's first end token."""
    ended = jnp.cumsum(completion_ids == end_token, axis=-1)
    return (ended - (completion_ids == end_token)) == 0
