"""The train state: trained and frozen parameters and the optimiser's state, as one pytree.

Parameters are nested dicts of arrays, as `nnx.to_pure_dict` gives them; `nnx.merge(graph,
parameters)` rebuilds the model. Trained and frozen parameters are two trees without common leaves,
so frozen ones have no gradients and no optimiser state.
"""

from typing import Any, NamedTuple

import optax
from flax import traverse_util

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.internvl import Parameters

FREEZABLE = ("vision", "projector", "language")


class TrainState(NamedTuple):
    """Everything that a step changes, and the frozen parameters."""

    trained: Parameters
    frozen: Parameters
    optimizer: optax.OptState

    @property
    def parameters(self) -> Parameters:
        """Trained and frozen parameters as the one tree that the model takes."""
        return join(self.trained, self.frozen)


def join(trained: Parameters, frozen: Parameters) -> Parameters:
    """One tree from two that share no leaf."""
    flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
    return traverse_util.unflatten_dict(flat)


def split(
    parameters: Parameters, freeze: tuple[str, ...], lora: bool
) -> tuple[Parameters, Parameters]:
    """Trained and frozen parameters.

    Args:
        freeze: modules not to train, from FREEZABLE.
        lora: train the language model's LoRA matrices instead of its own parameters.

    Raises:
        UserError: no such module, or nothing is left to train.
    """
    if unknown := set(freeze) - set(FREEZABLE):
        raise UserError(
            f"config.model.freeze: no module '{min(unknown)}'; choose from {', '.join(FREEZABLE)}"
        )

    def is_trained(path: tuple[str, ...]) -> bool:
        if path[0] in freeze:
            return False
        return not lora or path[0] != "language" or path[-1].startswith("lora_")

    flat = traverse_util.flatten_dict(parameters)
    trained = {path: x for path, x in flat.items() if is_trained(path)}
    frozen = {path: x for path, x in flat.items() if not is_trained(path)}
    if not trained:
        raise UserError("config.model.freeze: nothing is left to train; freeze fewer modules")
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(frozen)


def split_settings(model: Any) -> dict[str, Any]:
    """The `freeze` and `lora` arguments of `split`, from a config's `model`."""
    return dict(freeze=tuple(model.freeze), lora=bool(model.lora_rank))


def init_state(
    parameters: Parameters,
    optimizer: optax.GradientTransformation,
    freeze: tuple[str, ...],
    lora: bool,
) -> TrainState:
    """The state before the first step; arguments as in `split`."""
    trained, frozen = split(parameters, freeze, lora)
    return TrainState(trained, frozen, optimizer.init(trained))
