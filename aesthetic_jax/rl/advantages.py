"""Advantages of a group's completions over one another."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def group_advantages(
    rewards: Float[Array, "B G"], scale_rewards: str = "group", epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """Rewards minus their group's mean, over a standard deviation (ddof 1); TRL 1.16's GRPOTrainer.

    Args:
        scale_rewards: "group": divide by the group's deviation; "batch": by that of all rewards; "none": don't divide.
        epsilon: added to the deviation.

    Returns:
        Advantages; exactly 0 in a group of equal rewards, which rounding would otherwise make about 6e-4.

    Raises:
        ValueError: fewer than two completions a group, or no such scaling.
    """
    if rewards.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 completions, not {rewards.shape[1]}")
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if scale_rewards == "group":
        centred /= rewards.std(axis=1, ddof=1, keepdims=True) + epsilon
    elif scale_rewards == "batch":
        centred /= rewards.std(ddof=1) + epsilon
    elif scale_rewards != "none":
        raise ValueError(f"no scale_rewards '{scale_rewards}'; choose from group, batch, none")
    return jnp.where(jnp.ptp(rewards, axis=1, keepdims=True) == 0, 0.0, centred)
