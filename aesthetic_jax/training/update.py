"""One optimiser update on a batch: gradients of its microbatches, their average, the optimiser."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from aesthetic_jax.models.internvl import AnyArray, Parameters
from aesthetic_jax.training.state import TrainState, join

# (model, microbatch, tokens, reference) -> (loss, metrics)
LossFn = Callable[[Any, Any, Array, Parameters | None], tuple[Float[Array, ""], dict[str, Array]]]


class Update(NamedTuple):
    """One optimiser update on a batch in microbatches, whose gradients are averaged.

    Microbatches may differ in shape. Each shape is one compiled program, and applying the average
    is another. Trained parameters and optimiser state are donated.
    """

    zeros: Callable  # (trained) -> zero gradients
    gradient: Callable  # (trained, frozen, microbatch, tokens, reference) -> (gradients, metrics)
    add: Callable  # (summed gradients, *the same) -> (summed gradients, metrics)
    # (trained, optimiser state, summed gradients, metrics of all microbatches)
    #   -> (trained, optimiser state, metrics)
    apply: Callable

    def __call__(
        self, state: TrainState, microbatches: Sequence[Any], reference: Parameters | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        """The new state, and metrics with `loss` and `grad_norm`.

        Args:
            microbatches: of a batch, each with a `completion_mask`.
            reference: parameters of the reference model, for losses that take one.
        """
        # Mean number of tokens per microbatch: weights all tokens of the batch equally.
        tokens = sum(x.completion_mask.sum() for x in microbatches) / len(microbatches)
        if len(microbatches) == 1:
            summed, metrics = self.gradient(
                state.trained, state.frozen, microbatches[0], tokens, reference
            )
            collected = [metrics]
        else:  # from zero: starting with the first one's gradient would compile one more program
            summed, collected = self.zeros(state.trained), []
            for microbatch in microbatches:
                summed, metrics = self.add(
                    summed, state.trained, state.frozen, microbatch, tokens, reference
                )
                collected.append(metrics)
        trained, optimizer_state, metrics = self.apply(
            state.trained, state.optimizer, summed, collected
        )
        return TrainState(trained, state.frozen, optimizer_state), metrics


def make_update(
    loss_fn: LossFn,
    *,
    graph: Any,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
) -> Update:
    """The update of a loss and an optimiser.

    Args:
        loss_fn: (model, microbatch, tokens, reference) -> (loss, metrics). The batch's loss and
            metrics are the means over its microbatches, so a mean over the batch's tokens is a sum
            over `tokens`. Of metrics named `.../max` the maximum is taken.
        graph: the model's nnx.GraphDef.
        optimizer: the optimiser.
        shardings: shardings of the state on a mesh; None: all on one device.
    """

    def gradient(trained, frozen, microbatch, tokens, reference):
        def loss_of_trained(trained):
            model = nnx.merge(graph, join(trained, frozen))
            return loss_fn(model, microbatch, tokens, reference)

        (loss, metrics), gradients = jax.value_and_grad(loss_of_trained, has_aux=True)(trained)
        return gradients, {"loss": loss, **metrics}

    def add(summed, *inputs):
        gradients, metrics = gradient(*inputs)
        return jax.tree.map(jnp.add, summed, gradients), metrics

    def apply(trained, optimizer_state, summed, collected):
        gradients = jax.tree.map(lambda x: x / len(collected), summed)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, trained)
        metrics = {"grad_norm": optax.global_norm(gradients)}
        for name in collected[0]:
            values = jnp.stack([each[name] for each in collected])
            metrics[name] = values.max() if name.endswith("/max") else values.mean()
        return optax.apply_updates(trained, updates), optimizer_state, metrics

    def zeros(trained):
        return jax.tree.map(jnp.zeros_like, trained)

    trained, moments = (
        (None, None) if shardings is None else (shardings.trained, shardings.optimizer)
    )
    return Update(
        zeros=jax.jit(zeros, out_shardings=trained),
        gradient=jax.jit(gradient, out_shardings=(trained, None)),
        add=jax.jit(add, out_shardings=(trained, None), donate_argnums=0),
        apply=jax.jit(apply, out_shardings=(trained, moments, None), donate_argnums=(0, 1)),
    )


def microbatch_rows(
    lengths: Int[np.ndarray, " B"], microbatches: int, shards: int = 1
) -> Int[np.ndarray, "microbatches rows"]:
    """Which rows of a batch go into which microbatch, short completions first.

    Every microbatch takes equally many rows from each shard, in the shards' order.

    Args:
        lengths: tokens of each row's longest completion.
        microbatches: number of microbatches; times `shards` it divides B.
        shards: number of row blocks on the mesh's devices; no row leaves its block.
    """
    if microbatches == 1:
        return np.arange(len(lengths))[None]
    shard_rows = len(lengths) // shards
    by_length = np.argsort(lengths.reshape(shards, shard_rows), axis=1, kind="stable")
    rows = by_length + shard_rows * np.arange(shards)[:, None]
    return rows.reshape(shards, microbatches, -1).swapaxes(0, 1).reshape(microbatches, -1)


def split_microbatches(batch: Any, mask: Bool[AnyArray, "B G T"], microbatches: int) -> list[Any]:
    """Equal microbatches of a batch, short completions together, so that padding is small.

    Args:
        batch: a pytree whose leaves have the batch axis first; `microbatches` divides it.
        mask: True at completion tokens.
    """
    if microbatches == 1:
        return [batch]
    lengths = np.asarray(mask).any(1).sum(1)
    chosen = microbatch_rows(lengths, microbatches)
    return [jax.tree.map(lambda x, rows=rows: x[rows], batch) for rows in chosen]
