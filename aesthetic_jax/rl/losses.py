"""The losses of both stages, on log-probabilities of completion tokens [B, G, T]."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from aesthetic_jax.models.internvl import AnyArray

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_SAPO_TEMPERATURES = (1.0, 1.05)  # for positive and for other advantages


def sft_loss(
    logprobs: Float[AnyArray, "B G T"],
    mask: Bool[AnyArray, "B G T"],
    num_items: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Negative log-likelihood, summed over supervised tokens, divided by `num_items`.

    Equal to the loss of TRL 1.16's SFTTrainer.

    Args:
        mask: True at supervised tokens.
        num_items: None: the number of supervised tokens.
    """
    count = mask.sum() if num_items is None else num_items
    return -jnp.where(mask, logprobs, 0.0).sum() / jnp.maximum(count, 1)


def policy_loss(  # noqa: PLR0912, PLR0913 - a public contract: one argument per TRL setting
    logprobs: Float[AnyArray, "B G T"],
    old_logprobs: Float[AnyArray, "B G T"] | None,
    ref_logprobs: Float[AnyArray, "B G T"] | None,
    advantages: Float[AnyArray, "B G"],
    mask: Bool[AnyArray, "B G T"],
    *,
    loss_type: str,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
    use_bias_correction_kl: bool = True,
    max_completion_length: int | None = None,
    num_items_in_batch: ArrayLike | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The policy-gradient loss of GRPO and its relatives.

    Equal to TRL 1.16's `GRPOTrainer._compute_loss`, with its names.

    Args:
        logprobs: the policy's, at the sampling temperature; values at padding don't matter.
        old_logprobs: the sampling policy's; None: the ratio is 1 and keeps its gradient.
        ref_logprobs: the reference model's; None: no KL.
        advantages: one per completion.
        mask: True at completion tokens, the end of turn included.
        loss_type: grpo (mean over completions of token means), bnpo (mean over the given tokens),
            dr_grpo (over B G max_completion_length), dapo (over num_items_in_batch), cispo (clipped
            weight on the log-probability), sapo (a sigmoid instead of the clip; reduced as grpo).
        epsilon: lower clip range of the ratio.
        epsilon_high: upper clip range; None: epsilon; in cispo the largest ratio itself.
        delta: cap on the ratio before the minimum is taken (two-sided clipping); None: no cap.
        beta: weight of the KL to the reference.
        importance_sampling_level: "token", or "sequence" (GSPO: one length-normalised ratio per
            completion).
        use_bias_correction_kl: weights the KL with the ratio.
        max_completion_length: for dr_grpo; None: T.
        num_items_in_batch: tokens that dapo and cispo divide by; None: mask.sum().

    Returns:
        The loss, and metrics that are means over tokens: `kl`, `clip_ratio/low`,
        `clip_ratio/high`, `ratio/mean`, `ratio/max`.

    Raises:
        ValueError: no such loss type or level.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"no loss_type '{loss_type}'; choose from {', '.join(LOSS_TYPES)}")
    if importance_sampling_level not in ("token", "sequence"):
        raise ValueError(
            f"no importance_sampling_level '{importance_sampling_level}'; choose token or sequence"
        )
    high = epsilon if epsilon_high is None else epsilon_high
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    items = mask.sum() if num_items_in_batch is None else num_items_in_batch

    def tokens(x):  # keeps padding out of values and gradients
        return jnp.where(mask, x, 0.0)

    logprobs = tokens(logprobs)
    old = jax.lax.stop_gradient(logprobs) if old_logprobs is None else tokens(old_logprobs)
    log_ratio = logprobs - old
    if importance_sampling_level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdims=True) / lengths
    ratio = jnp.exp(log_ratio)
    advantage = advantages[..., None]

    if loss_type == "cispo":
        loss = -jax.lax.stop_gradient(jnp.minimum(ratio, high)) * advantage * logprobs
    elif loss_type == "sapo":
        temperature = jnp.where(advantage > 0, *_SAPO_TEMPERATURES)
        loss = -advantage * jax.nn.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    else:
        clipped = jnp.clip(ratio, 1 - epsilon, 1 + high)
        bounded = ratio if delta is None else jnp.minimum(ratio, delta)
        loss = -jnp.minimum(bounded * advantage, clipped * advantage)

    kl = jnp.zeros_like(logprobs)
    if ref_logprobs is not None and beta:
        gap = tokens(ref_logprobs) - logprobs
        kl = jnp.exp(gap) - gap - 1
        if use_bias_correction_kl:
            kl *= ratio
        loss = loss + beta * kl

    loss = tokens(loss)
    if loss_type in ("grpo", "sapo"):
        value = (loss.sum(-1, keepdims=True) / lengths).mean()
    elif loss_type == "bnpo":
        value = loss.sum() / jnp.maximum(mask.sum(), 1)
    elif loss_type == "dr_grpo":
        value = loss.sum() / (mask[..., 0].size * (max_completion_length or mask.shape[-1]))
    else:
        value = loss.sum() / jnp.maximum(items, 1)

    def mean(x):
        return tokens(x).sum() / jnp.maximum(mask.sum(), 1)

    low_clipped = (ratio < 1 - epsilon) & (advantage < 0)
    high_clipped = (ratio > 1 + high) & (advantage > 0)
    if loss_type == "cispo":
        low_clipped, high_clipped = jnp.zeros_like(low_clipped), (ratio > high) & (advantage > 0)
    metrics = {
        "kl": mean(kl),
        "clip_ratio/low": mean(low_clipped.astype(jnp.float32)),
        "clip_ratio/high": mean(high_clipped.astype(jnp.float32)),
        "ratio/mean": mean(ratio),
        "ratio/max": jnp.where(mask, ratio, 0.0).max(),
    }
    return value, jax.lax.stop_gradient(metrics)
