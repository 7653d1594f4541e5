"""The losses of both stages, on log-probabilities of completion tokens [B, G, T]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
_SAPO_TEMPERATURES = (1.0, 1.05)  # of positive and of other advantages


def sft_loss(
    logprobs: Float[Array, "B G T"], mask: Bool[Array, "B G T"], num_items: Array | None = None
) -> Float[Array, ""]:
    """Negative log-likelihood summed over the supervised tokens, over `num_items` (None: their number)."""
    count = mask.sum() if num_items is None else num_items
    return -jnp.where(mask, logprobs, 0.0).sum() / jnp.maximum(count, 1)


def policy_loss(
    logprobs: Float[Array, "B G T"],
    old_logprobs: Float[Array, "B G T"] | None,
    ref_logprobs: Float[Array, "B G T"] | None,
    advantages: Float[Array, "B G"],
    mask: Bool[Array, "B G T"],
    *,
    loss_type: str,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
    use_bias_correction_kl: bool = True,
    max_completion_length: int | None = None,
    num_items_in_batch: Array | float | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The policy-gradient loss of GRPO and its relatives; TRL 1.16's `GRPOTrainer._compute_loss`, names and all.

    Args:
        logprobs: of the policy, at the sampling temperature; what is behind a completion's end doesn't matter.
        old_logprobs: of the policy that sampled; None: the ratio is 1 and its gradient stays.
        ref_logprobs: of the reference model; None: no KL.
        advantages: one per completion.
        mask: True at completion tokens, the end of turn included.
        loss_type: grpo (mean over completions of token means), bnpo (mean over the tokens at hand), dr_grpo (over
            B G max_completion_length), dapo (over num_items_in_batch), cispo (clipped weight on the log-probability), sapo (a
            sigmoid in the place of the clip, reduced as grpo).
        epsilon: lower clip range of the ratio.
        epsilon_high: upper clip range, None: epsilon; in cispo the greatest ratio itself.
        delta: greatest ratio before the minimum (two-sided clipping); None: none.
        beta: weight of the KL to the reference.
        importance_sampling_level: "token", or "sequence" (GSPO: one length-normalised ratio per completion).
        use_bias_correction_kl: weight the KL with the ratio.
        max_completion_length: for dr_grpo; None: T.
        num_items_in_batch: tokens that dapo and cispo divide by; None: mask.sum().

    Returns:
        The loss and metrics: `kl`, `clip_ratio/low`, `clip_ratio/high`, `ratio/mean`, `ratio/max`, means over tokens.

    Raises:
        ValueError: no such loss type or level.
    """
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"no loss_type '{loss_type}'; choose from {', '.join(LOSS_TYPES)}")
    if importance_sampling_level not in ("token", "sequence"):
        raise ValueError(f"no importance_sampling_level '{importance_sampling_level}'; choose token or sequence")
    high = epsilon if epsilon_high is None else epsilon_high
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    items = mask.sum() if num_items_in_batch is None else num_items_in_batch

    def tokens(x):  # keeps whatever stands in the padding out of values and gradients alike
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
