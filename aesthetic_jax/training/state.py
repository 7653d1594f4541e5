"""The one pytree that training moves forward, its optimiser, and the update that every step ends with.

Parameters are nested dicts of arrays, as `nnx.to_pure_dict` gives them; `nnx.merge(graph, parameters)` is the model again.
Those that are trained and those that are frozen are two trees with the same paths missing in one another, so that neither
gradients nor optimiser state exist for what is frozen.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.errors import UserError

Parameters = dict[str, Any]


class TrainState(NamedTuple):
    """Everything a step changes, and the frozen parameters beside it."""

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


def trained_parts(model) -> dict[str, Any]:
    """The arguments of `split` that a config's `model` means."""
    return dict(freeze=tuple(model.freeze), lora=bool(model.lora_rank))


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
    return TrainState(trained, frozen, optimizer.init(trained))


class Update(NamedTuple):
    """One optimiser update on a batch that is cut into parts, whose gradients are averaged.

    The parts may differ in shape: each shape is one compiled program, and applying the average is another. What is trained
    and the optimiser's state are donated.
    """

    zeros: Callable  # (trained) -> total of no part
    gradient: Callable  # (trained, frozen, part, tokens, reference) -> (gradients, metrics)
    add: Callable  # (total, the same) -> (total and the part's gradients, metrics)
    apply: Callable  # (trained, optimiser state, total, metrics of all parts) -> (trained, optimiser state, metrics)

    def __call__(
        self, state: TrainState, parts: Sequence[Any], reference: Parameters | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """The new state, and metrics with `loss` and `grad_norm`.

        Args:
            parts: of a batch, each with a `completion_mask`.
            reference: parameters of the reference model, for losses that take one.
        """
        # What a part divides sums over its tokens by, so that every token of the batch weighs the same.
        tokens = sum(part.completion_mask.sum() for part in parts) / len(parts)
        if len(parts) == 1:
            total, only = self.gradient(state.trained, state.frozen, parts[0], tokens, reference)
            measured = [only]
        else:  # from zero, as starting from the first part's own gradient would take one more program
            total, measured = self.zeros(state.trained), []
            for part in parts:
                total, each = self.add(total, state.trained, state.frozen, part, tokens, reference)
                measured.append(each)
        trained, optimizer_state, metrics = self.apply(state.trained, state.optimizer, total, measured)
        return TrainState(trained, state.frozen, optimizer_state), metrics


def make_update(
    loss: Callable[[nnx.Module, Any, Array, Parameters | None], tuple[Float[Array, ""], dict]],
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
) -> Update:
    """The update that a loss and an optimiser make.

    Args:
        loss: (model, part, tokens, reference) -> (loss, metrics). The batch's are the averages of the parts', so a mean over
            the batch's tokens is a sum over `tokens`; of metrics named `.../max` the greatest is taken.
        graph: of the model.
        optimizer: the optimiser.
        shardings: where the state lives on a mesh; None: all on one device.
    """

    def gradient(trained, frozen, part, tokens, reference):
        def of(trained):
            return loss(nnx.merge(graph, join(trained, frozen)), part, tokens, reference)

        (value, metrics), gradients = jax.value_and_grad(of, has_aux=True)(trained)
        return gradients, {"loss": value, **metrics}

    def add(total, *inputs):
        gradients, metrics = gradient(*inputs)
        return jax.tree.map(jnp.add, total, gradients), metrics

    def apply(trained, optimizer_state, total, measured):
        gradients = jax.tree.map(lambda x: x / len(measured), total)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, trained)
        metrics = {"grad_norm": optax.global_norm(gradients)}
        for name in measured[0]:
            values = jnp.stack([part[name] for part in measured])
            metrics[name] = values.max() if name.endswith("/max") else values.mean()
        return optax.apply_updates(trained, updates), optimizer_state, metrics

    def zeros(trained):
        return jax.tree.map(jnp.zeros_like, trained)

    like, moments = (None, None) if shardings is None else (shardings.trained, shardings.optimizer)
    return Update(
        zeros=jax.jit(zeros, out_shardings=like),
        gradient=jax.jit(gradient, out_shardings=(like, None)),
        add=jax.jit(add, out_shardings=(like, None), donate_argnums=0),
        apply=jax.jit(apply, out_shardings=(like, moments, None), donate_argnums=(0, 1)),
    )


def part_rows(lengths: Int[np.ndarray, " B"], parts: int, shards: int = 1) -> Int[np.ndarray, "parts B/parts"]:
    """Which rows of a batch go into which part: as many of each shard, in its order, and the short ones first.

    Args:
        lengths: tokens of each row's longest completion.
        parts: times shards divides B.
        shards: pieces that a mesh's devices hold the rows in; no row leaves its own.
    """
    if parts == 1:
        return np.arange(len(lengths))[None]
    each = len(lengths) // shards
    order = np.argsort(np.reshape(lengths, (shards, each)), axis=1, kind="stable") + each * np.arange(shards)[:, None]
    return order.reshape(shards, parts, -1).swapaxes(0, 1).reshape(parts, -1)


def split_rows(batch: Any, mask: Bool[Array, "B G T"], parts: int) -> list[Any]:
    """Equal parts of a batch, samples with short completions together, so that little of a part is padding.

    Args:
        batch: a pytree whose leaves have the batch axis first; `parts` divides it.
        mask: True at completion tokens.
    """
    if parts == 1:
        return [batch]
    lengths = np.asarray(mask).any(1).sum(1)
    return [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in part_rows(lengths, parts)]
