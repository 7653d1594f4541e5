"""The optimiser: AdamW with gradient clipping, and its learning-rate schedules."""

from typing import Any

import jax
import optax
from flax import traverse_util

from aesthetic_jax.errors import UserError


def make_schedule(config: Any, num_updates: int) -> optax.Schedule:
    """Learning rate of each update: linear warm-up, then constant, linear or cosine decay.

    The decay ends at `end_lr_ratio` of the learning rate.

    Args:
        config: a config's `optimizer`.
        num_updates: optimiser updates of the whole run.

    Raises:
        UserError: no such schedule.
    """
    peak, warmup = config.learning_rate, config.warmup_updates
    remaining = max(1, num_updates - warmup)
    decays = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_lr_ratio, remaining),
        "cosine": lambda: optax.cosine_decay_schedule(peak, remaining, config.end_lr_ratio),
    }
    if config.schedule not in decays:
        raise UserError(
            f"config.optimizer.schedule: no '{config.schedule}'; choose from {', '.join(decays)}"
        )
    # The first update already moves: its rate is peak / warmup, not 0.
    rise = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decays[config.schedule]()], [warmup])


def make_optimizer(config: Any, num_updates: int) -> optax.GradientTransformation:
    """AdamW after clipping by the global norm.

    Norms and biases are not decayed, as in transformers' Trainer. The updates of vision tower and
    projector are scaled by `vision_lr_scale`.

    Args:
        config: a config's `optimizer`.
        num_updates: optimiser updates of the whole run.
    """

    def decayed(parameters):
        flat = traverse_util.flatten_dict(parameters)
        return traverse_util.unflatten_dict(
            {path: path[-1] not in ("scale", "bias") for path in flat}
        )

    def scale_vision(updates, _):
        vision = config.vision_lr_scale
        scales = {"language": 1.0, "vision": vision, "projector": vision}
        return {
            module: jax.tree.map(lambda x, scale=scales[module]: scale * x, tree)
            for module, tree in updates.items()
        }

    adamw = optax.adamw(
        make_schedule(config, num_updates),
        b1=config.b1,
        b2=config.b2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm), adamw, optax.stateless(scale_vision)
    )
