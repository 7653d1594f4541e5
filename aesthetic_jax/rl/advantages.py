"""Advantages of completions relative to their group."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from aesthetic_jax.models.internvl import AnyArray


def group_advantages(
    rewards: Float[AnyArray, "B G"], scale_rewards: str = "group", epsilon: float = 1e-4
) -> Float[Array, "B G"]:
    """Rewards minus their group's mean, divided by a standard deviation (ddof 1).

    Equal to TRL 1.16's GRPOTrainer, except for groups of equal rewards: their advantages are
    exactly 0 here, while TRL's rounding gives about 6e-4.

    Args:
        scale_rewards: "group": divide by the group's deviation; "batch": by that of all rewards;
            "none": don't divide.
        epsilon: added to the deviation.

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
