"""The one pytree that training moves forward, its optimiser, and the update that every step ends with.

Parameters are nested dicts of arrays, as `nnx.to_pure_dict` gives them; `nnx.merge(graph, parameters)` is the model again.
Those that are trained and those that are frozen are two trees with the same paths missing in one another, so that neither
gradients nor optimiser state exist for what is frozen.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx, traverse_util
from jaxtyping import Array, Float, Int

from aesthetic_jax.errors import UserError

Parameters = dict[str, Any]


class TrainState(NamedTuple):
    """Everything a step changes, and the frozen parameters beside it."""

    step: Int[Array, ""]
    trained: Parameters
    frozen: Parameters
    optimizer: optax.OptState

    @property
    def parameters(self) -> Parameters:
        """Trained and frozen parameters as the one tree that the model takes."""
        return join(self.trained, self.frozen)


def join(trained: Parameters, frozen: Parameters) -> Parameters:
    """One tree of two that share no leaf."""
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def split(parameters: Parameters, freeze: tuple[str, ...], lora: bool) -> tuple[Parameters, Parameters]:
    """Trained and frozen parameters.

    Args:
        freeze: parts of the model to leave as they are: "vision", "projector", "language".
        lora: train the language model's LoRA matrices in place of its own parameters.
    """
    if unknown := set(freeze) - {"vision", "projector", "language"}:
        raise UserError(f"config.model.freeze: no part '{min(unknown)}'; the parts are vision, projector, language")

    def is_trained(path: tuple[str, ...]) -> bool:
        if path[0] in freeze:
            return False
        return not lora or path[0] != "language" or path[-1].startswith("lora_")

    flat = traverse_util.flatten_dict(parameters)
    trained = {path: x for path, x in flat.items() if is_trained(path)}
    frozen = {path: x for path, x in flat.items() if not is_trained(path)}
    if not trained:
        raise UserError("config.model.freeze: nothing is left to train; freeze fewer parts")
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def make_schedule(config, updates: int) -> optax.Schedule:
    """Learning rate of each optimiser update: linear warm-up, then constant, linear or cosine decay to `end_factor` of it."""
    peak, warmup = config.learning_rate, config.warmup_updates
    rest = max(1, updates - warmup)
    decays = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_factor, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.end_factor),
    }
    if config.schedule not in decays:
        raise UserError(f"config.optimizer.schedule: no '{config.schedule}'; choose from {', '.join(decays)}")
    # The first update already moves: its rate is peak / warmup, not 0.
    rise = optax.linear_schedule(peak / max(1, warmup), peak, max(1, warmup - 1))
    return optax.join_schedules([rise, decays[config.schedule]()], [warmup])


def make_optimizer(config, updates: int) -> optax.GradientTransformation:
    """AdamW behind clipping by the global norm; norms and biases are not decayed, as in transformers' Trainer."""

    def decayed(parameters):
        flat = traverse_util.flatten_dict(parameters)
        return traverse_util.unflatten_dict({path: path[-1] not in ("scale", "bias") for path in flat})

    def slow_vision(updates, _):
        factor = {"language": 1.0, "vision": config.vision_factor, "projector": config.vision_factor}
        return {part: jax.tree.map(lambda x, part=part: factor[part] * x, tree) for part, tree in updates.items()}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, updates),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
        optax.stateless(slow_vision),
    )


def init_state(
    parameters: Parameters, optimizer: optax.GradientTransformation, freeze: tuple[str, ...], lora: bool
) -> TrainState:
    """The state before the first step."""
    trained, frozen = split(parameters, freeze, lora)
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, optimizer.init(trained))


def update(
    state: TrainState,
    batch: Any,
    loss: Callable[[nnx.Module, Any], tuple[Float[Array, ""], dict]],
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on a batch, its gradient accumulated over equal micro-batches.

    Args:
        batch: a pytree whose leaves have the batch axis first; micro_batches divides it.
        loss: (model, micro-batch) -> (loss, metrics); loss and metrics are averaged over micro-batches, so a loss that is a
            mean over the whole batch's tokens divides by 1 / micro_batches of their number.

    Returns:
        The new state (`step` is left to the caller) and the metrics with `loss` and `grad_norm`.
    """

    def gradient(micro_batch):
        def of(trained):
            return loss(nnx.merge(graph, join(trained, state.frozen)), micro_batch)

        (value, metrics), gradients = jax.value_and_grad(of, has_aux=True)(state.trained)
        return gradients, {"loss": value, **metrics}

    if micro_batches == 1:
        gradients, metrics = gradient(batch)
    else:
        stacked = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)

        def accumulate(total, micro_batch):
            return jax.tree.map(jnp.add, total, gradient(micro_batch)), None

        shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], stacked))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(accumulate, zeros, stacked)
        gradients, metrics = jax.tree.map(lambda x: x / micro_batches, total)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
    metrics["grad_norm"] = optax.global_norm(gradients)
    return state._replace(trained=optax.apply_updates(state.trained, updates), optimizer=optimizer_state), metrics
