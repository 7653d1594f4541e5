"""Log-probabilities of completions, without ever holding logits for a whole sequence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.models.internvl import InternVL, PromptCache
from aesthetic_jax.models.sharding import by_rows

_CHUNK_TOKENS = 1024  # whose logits live at once on a device
_CHUNK_LOGITS = 2**26  # and no more numbers than this: 0.27 GB


def token_logprobs(
    model: InternVL, hidden: Float[Array, "B G T D"], targets: Int[Array, "B G T"], temperature: float = 1.0
) -> tuple[Float[Array, "B G T"], Float[Array, "B G T"]]:
    """Log-probability of each target and entropy of its distribution, float32 nats, of logits / temperature.

    Logits exist for a chunk of tokens at a time and are computed again in the backward pass. Under a mesh each device goes
    through its own rows, and the head's gradient is summed over devices once, behind the last chunk.
    """

    def one_chunk(hidden, targets, head):
        logits = model.logits(hidden.reshape(-1, hidden.shape[-1]), head)
        logprobs = jax.nn.log_softmax(logits / temperature)
        chosen = jnp.take_along_axis(logprobs, targets.reshape(-1, 1), axis=-1)
        entropies = -(jnp.exp(logprobs) * logprobs).sum(-1)
        return chosen.reshape(targets.shape), entropies.reshape(targets.shape)

    def in_chunks(hidden, targets, head):
        batch, group, length = targets.shape
        chunk = min(length, max(1, min(_CHUNK_TOKENS, _CHUNK_LOGITS // head.shape[1]) // (batch * group)))
        chunks = -(-length // chunk)

        def split(x):
            x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * chunk - length)) + ((0, 0),) * (x.ndim - 3))
            return jnp.moveaxis(x.reshape(batch, group, chunks, chunk, *x.shape[3:]), 2, 0)

        # The last forward product and the first backward one: a single chunk's logits take no more memory if they are kept.
        of_chunk = one_chunk if chunks == 1 else jax.checkpoint(one_chunk)
        _, outputs = jax.lax.scan(lambda _, x: (None, of_chunk(*x, head)), None, (split(hidden), split(targets)))
        return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, group, -1)[..., :length] for x in outputs)

    return by_rows(in_chunks, hidden, targets, model.language.head_kernel)


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
