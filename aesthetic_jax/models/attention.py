"""Attention with grouped queries: over one sequence, and over a prompt shared by a group plus each member's own keys.

Three back ends compute the same. `xla` is the reference: it holds the scores, H S Z float32 numbers a row, and runs anywhere.
`splash` (TPU) and `cudnn` (GPU) go through them in blocks, forward and backward. What a query may see is described, not
handed over as a mask [B, S, Z]: every back end makes of it what it needs.

Softmax runs in float32, and is divided by its sum behind the values: there are fewer of these than of weights. In `xla` the
largest negative number stands in for minus infinity, so that a row that may look nowhere stays finite.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import ATTENTION, InternVLConfig
from aesthetic_jax.models.splash import LANES, SAVED, splash_attention

_NEVER = -0.7 * float(jnp.finfo(jnp.float32).max)
_BLOCK = 128  # tokens of `xla` that go together: their scores stay in a CPU's cache, and causal ones see no later block's keys
_CUDNN_WIDTH = 128  # channels of a head at most; Hopper and later take 256


def choose_backend(config: InternVLConfig) -> str:
    """The back end that `config.attention` means for this program: "xla", "cudnn" or "splash".

    The program is taken to be for the devices of the mesh in context (`jax.set_mesh`), which may be a TPU's that isn't here,
    and without a mesh for JAX's default ones. "auto" is splash on TPU, cudnn on GPU where it takes the model, else xla.

    Raises:
        UserError: there is no such back end, or it can't run there, or not this model.
    """
    if config.attention not in ATTENTION:
        raise UserError(f"config.model.attention: no '{config.attention}'; choose from {', '.join(ATTENTION)}")
    platform = target_platform()
    if config.attention == "auto":
        backend = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
        return "xla" if _refusal(backend, platform, config) else backend
    if refusal := _refusal(config.attention, platform, config):
        raise UserError(f"config.model.attention: {refusal}")
    return config.attention


def target_platform() -> str:
    """What the program is for: the platform of the mesh in context, which may not be this machine's, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _refusal(backend: str, platform: str, config: InternVLConfig) -> str | None:
    """Why a back end can't run a model on a platform, and the mend; None: it can."""
    needed = {"splash": "tpu", "cudnn": "gpu"}.get(backend, platform)
    if platform != needed:
        return f"{backend} runs on a {needed.upper()}, and this is a {platform.upper()}; choose auto or xla"
    if backend != "cudnn":  # splash takes every head and dtype
        return None
    if config.dtype != "bfloat16":
        return f"cudnn takes bfloat16, and config.model.dtype is {config.dtype}; choose bfloat16 there, or auto or xla here"
    for part, width in (("vision tower", config.vision.head_dim), ("language model", config.text.head_dim)):
        if width % 8 or width > _CUDNN_WIDTH:
            return (
                f"cudnn takes heads of a multiple of 8 channels, up to {_CUDNN_WIDTH}, and the {part}'s have {width}; "
                "choose auto or xla"
            )
    return None


def as_cached(keys: Float[Array, "... S K E"], values: Float[Array, "... S K E"]) -> tuple[Array, Array]:
    """Keys [..., K, E, S] and values [..., K, S, E]: in the order that both products of attention read them, uncopied."""
    return jnp.moveaxis(keys, -3, -1), values.swapaxes(-3, -2)


def attention(
    queries: Float[Array, "B S H E"],
    keys: Float[Array, "B Z K E"],
    values: Float[Array, "B Z K E"],
    *,
    causal: bool = False,
    backend: str = "xla",
) -> Float[Array, "B S H E"]:
    """Scaled dot-product attention; query head h reads key-value head h // (H / K).

    Args:
        queries: of S tokens.
        keys: of Z tokens; causal needs Z = S.
        values: of the same.
        causal: query s sees keys 0 to s; else every query sees all keys.
        backend: of `choose_backend`.
    """
    if backend == "splash":
        prefix, run = (0, queries.shape[1]) if causal else (keys.shape[1], 0)
        return splash_attention(queries, keys, values, prefix=prefix, run=run)
    if backend == "cudnn":
        return _cudnn(queries, keys, values, causal=causal)
    rows, cached = _by_kv_head(queries, keys.shape[2]), as_cached(keys, values)
    mixture = _mix_in_blocks(rows, *cached, queries.shape[1], 0 if causal else None)
    return _by_token(mixture.values / mixture.total, queries)


def shared_prompt_attention(
    queries: Float[Array, "B G T H E"],
    prompt_keys: Float[Array, "B K E P"],
    prompt_values: Float[Array, "B K P E"],
    prompt_mask: Bool[Array, "B P"],
    keys: Float[Array, "B G K E S"],
    values: Float[Array, "B G K S E"],
    filled: int | Int[Array, ""] = 0,
    *,
    backend: str = "xla",
) -> Float[Array, "B G T H E"]:
    """Attention of G completions over their one prompt and over their own tokens, in one softmax.

    Equal to `attention` on prompt and completion concatenated with the prompt repeated G times. In `xla` and `splash` the
    prompt's keys are there once for all G * T queries; `cudnn` gets a copy a completion.

    Args:
        queries: of T tokens a completion.
        prompt_keys: of P tokens, of `as_cached`.
        prompt_values: of the same.
        prompt_mask: True where there is a token.
        keys: the completions' own, of `as_cached`.
        values: of the same.
        filled: tokens before the T of `queries`: query t sees own keys 0 to filled + t.
        backend: of `choose_backend`; all but xla need filled = 0 and S = T.
    """
    if backend != "xla":
        shared = {"splash": _shared_by_splash, "cudnn": _shared_by_cudnn}[backend]
        prompt_keys, keys = (jnp.moveaxis(x, -1, -3) for x in (prompt_keys, keys))
        prompt_values, values = (x.swapaxes(-3, -2) for x in (prompt_values, values))
        return shared(queries, prompt_keys, prompt_values, prompt_mask, keys, values)
    batch, group, length = queries.shape[:3]
    kv_heads = keys.shape[2]
    rows = _by_kv_head(queries, kv_heads)
    if isinstance(filled, int):
        own = _mix_in_blocks(rows, keys, values, length, filled)
    else:
        own = _mix(rows, keys, values, _causal(rows.shape[-2], length, keys.shape[-1], filled))
    # The group reads the prompt together, as one matrix of rows.
    group_rows = rows.swapaxes(1, 2).reshape(batch, kv_heads, -1, rows.shape[-1])
    prompt = _mix(group_rows, prompt_keys, prompt_values, prompt_mask[:, None, None])
    prompt = _Mixture(*(x.reshape(batch, kv_heads, group, -1, x.shape[-1]).swapaxes(1, 2) for x in prompt))
    top = jnp.maximum(own.top, prompt.top)
    own_share, prompt_share = jnp.exp(own.top - top), jnp.exp(prompt.top - top)
    values = own.values * own_share + prompt.values * prompt_share
    return _by_token(values / (own.total * own_share + prompt.total * prompt_share), queries)


class _Mixture(NamedTuple):
    """Values mixed by exp(score - top): over `total` they are softmax's mixture, and what other keys add can be added."""

    values: Float[Array, "... Q E"]
    total: Float[Array, "... Q 1"]  # of the weights
    top: Float[Array, "... Q 1"]  # the row's greatest score


def _mix(
    queries: Float[Array, "... Q E"],
    keys: Float[Array, "... E Z"],
    values: Float[Array, "... Z E"],
    visible: Bool[Array, "... Q Z"] | None = None,
) -> _Mixture:
    """What the rows of `_by_kv_head` read from keys and values of `as_cached`, float32; visible None: they see all."""
    scores = jnp.matmul(queries, keys, preferred_element_type=jnp.float32)
    if visible is not None:
        scores = jnp.where(visible, scores, _NEVER)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))  # cancels out of values / total
    weights = jnp.exp(scores - top)
    mixed = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return _Mixture(checkpoint_name(mixed, SAVED), weights.sum(-1, keepdims=True), top)


def _by_kv_head(queries: Float[Array, "... S H E"], kv_heads: int) -> Float[Array, "... K S*H/K E"]:
    """Scaled queries, those that read the same keys as rows of one matrix: the H / K of a token beside each other.

    So that scores have no more than four axes: on five or six XLA's CPU code takes many times as long for the same numbers.
    """
    *leading, length, heads, width = queries.shape
    grouped = (queries * width**-0.5).reshape(*leading, length, kv_heads, heads // kv_heads, width)
    return jnp.moveaxis(grouped, -3, -4).reshape(*leading, kv_heads, -1, width)


def _by_token(rows: Float[Array, "... K S*H/K E"], queries: Float[Array, "... S H E"]) -> Float[Array, "... S H E"]:
    """Rows of `_by_kv_head` in the order, shape and dtype of the queries again."""
    *leading, length, heads, width = queries.shape
    kv_heads = rows.shape[-3]
    grouped = rows.reshape(*leading, kv_heads, length, heads // kv_heads, width)
    return jnp.moveaxis(grouped, -4, -3).reshape(queries.shape).astype(queries.dtype)


def _causal(rows: int, tokens: int, keys: int, before: int | Int[Array, ""]) -> Bool[Array, "rows keys"]:
    """Which keys the rows of `_by_kv_head` see: those of `before` earlier tokens, and those up to their own token's."""
    return jnp.arange(keys) <= before + jnp.arange(rows)[:, None] // (rows // tokens)


def _mix_in_blocks(
    queries: Float[Array, "... Q E"],
    keys: Float[Array, "... E Z"],
    values: Float[Array, "... Z E"],
    tokens: int,
    before: int | None = None,
) -> _Mixture:
    """`_mix` of the rows of so many tokens, a block of tokens at a time; `before`: causal, behind so many earlier tokens."""
    repeats = queries.shape[-2] // tokens
    blocks = max(1, round(tokens / _BLOCK))
    ends = [tokens * block // blocks for block in range(blocks + 1)]
    mixtures = []
    for start, end in itertools.pairwise(ends):
        rows = queries[..., start * repeats : end * repeats, :]
        seen, visible = keys.shape[-1], None
        if before is not None:
            seen = before + end
            visible = _causal(rows.shape[-2], end - start, seen, before + start)
        mixtures.append(_mix(rows, keys[..., :seen], values[..., :seen, :], visible))
    return _Mixture(*(jnp.concatenate(parts, axis=-2) for parts in zip(*mixtures, strict=True)))


def _shared_by_splash(queries, prompt_keys, prompt_values, prompt_mask, keys, values):
    """The G completions as one sequence behind the prompt, in which each sees the prompt and its own run of T tokens."""
    batch, group, length = queries.shape[:3]
    fill = -length % LANES
    if 8 * fill > length:  # costs more than runs that straddle blocks do
        fill = 0

    def in_one_row(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0), (0, 0)))
        return x.reshape(batch, group * (length + fill), *x.shape[3:])

    own = jnp.ones((batch, group * (length + fill)), bool)
    mixed = splash_attention(
        in_one_row(queries),
        jnp.concatenate([prompt_keys, in_one_row(keys)], axis=1),
        jnp.concatenate([prompt_values, in_one_row(values)], axis=1),
        jnp.concatenate([prompt_mask, own], axis=1),
        prefix=prompt_mask.shape[1],
        run=length + fill,
    )
    return mixed.reshape(batch, group, length + fill, *mixed.shape[2:])[:, :, :length]


def _shared_by_cudnn(queries, prompt_keys, prompt_values, prompt_mask, keys, values):
    """A row a completion: its own copy of the prompt's keys, its own behind them, and a mask [B * G, 1, T, P + T].

    cuDNN's own causal and length masks both begin at the first key, so that neither fits keys behind a padded prompt.
    """
    batch, group, length = queries.shape[:3]

    def in_rows(prompt, own):
        prompt = jnp.broadcast_to(prompt[:, None], (batch, group, *prompt.shape[1:]))
        return jnp.concatenate([prompt, own], axis=2).reshape(batch * group, -1, *own.shape[3:])

    to_prompt = jnp.broadcast_to(prompt_mask[:, None, None], (batch, group, length, prompt_mask.shape[1]))
    to_own = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, group, length, length))
    mixed = _cudnn(
        queries.reshape(batch * group, *queries.shape[2:]),
        in_rows(prompt_keys, keys),
        in_rows(prompt_values, values),
        mask=jnp.concatenate([to_prompt, to_own], axis=-1).reshape(batch * group, 1, length, -1),
    )
    return mixed.reshape(queries.shape)


def _cudnn(queries, keys, values, *, mask=None, causal=False):
    """cuDNN's attention, fitted to what JAX asks of it for a backward pass: even numbers of queries and of keys."""
    length, span = queries.shape[1], keys.shape[1]
    more_queries, more_keys = length % 2, span % 2
    lengths = None
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, more_queries), (0, more_keys)))
    elif more_keys and not causal:
        lengths = jnp.full(len(keys), span, jnp.int32)
    queries = jnp.pad(queries, ((0, 0), (0, more_queries), (0, 0), (0, 0)))
    keys, values = (jnp.pad(x, ((0, 0), (0, more_keys), (0, 0), (0, 0))) for x in (keys, values))
    mixed = jax.nn.dot_product_attention(
        queries, keys, values, mask=mask, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return mixed[:, :length]
