"""The update that every step ends with: accumulation, freezing, LoRA, schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.config import base_config
from aesthetic_jax.training.state import init_state, join, make_optimizer, make_schedule, split, update

PARAMETERS = {
    "vision": {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(2)},
    "projector": {"kernel": jnp.full((2, 2), 0.5)},
    "language": {"kernel": jnp.ones((2, 1)), "lora_a": jnp.ones((2, 1)), "lora_b": jnp.zeros((1, 1))},
}


def settings(**changes) -> ConfigDict:
    config = base_config().optimizer
    config.update({"learning_rate": 1e-2, "schedule": "constant"} | changes)
    return config


def one_update(micro_batches: int, **changes):
    """Linear regression through three layers that `nnx.merge` is not needed for."""

    def loss(model, batch):
        x, y = batch
        hidden = x @ model["vision"]["kernel"] * model["vision"]["scale"] @ model["projector"]["kernel"]
        return jnp.square(hidden @ model["language"]["kernel"] - y).mean(), {"rows": jnp.float32(len(x))}

    optimizer = make_optimizer(settings(**changes), 10)
    state = init_state(PARAMETERS, optimizer, (), False)
    batch = (jax.random.normal(jax.random.key(0), (8, 3)), jax.random.normal(jax.random.key(1), (8, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aesthetic_jax.training.state.nnx.merge", lambda graph, parameters: parameters)
        step = functools.partial(update, loss=loss, graph=None, optimizer=optimizer, micro_batches=micro_batches)
        return state, *step(state, batch)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    _, whole, metrics = one_update(1)
    _, parts, accumulated = one_update(4)
    for a, b in zip(jax.tree.leaves(whole.trained), jax.tree.leaves(parts.trained), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], accumulated["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], accumulated["grad_norm"], rtol=1e-5)
    assert accumulated["rows"] == 2


def test_vision_and_projector_move_by_their_share_of_the_learning_rate():
    before, full, _ = one_update(1, weight_decay=0.0)
    _, slow, _ = one_update(1, weight_decay=0.0, vision_factor=0.25)
    for part, factor in (("vision", 0.25), ("projector", 0.25), ("language", 1.0)):
        moved, whole = (x.trained[part]["kernel"] - before.trained[part]["kernel"] for x in (slow, full))
        np.testing.assert_allclose(moved, factor * whole, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(
    ("freeze", "lora", "trained"),
    [
        ((), False, {"vision", "projector", "language"}),
        (("vision",), False, {"projector", "language"}),
        (("vision", "projector"), True, {"language"}),
        (("language",), False, {"vision", "projector"}),
    ],
)
def test_split_and_join_are_inverse_and_leave_no_optimiser_state_for_what_is_frozen(freeze, lora, trained):
    ours, frozen = split(PARAMETERS, freeze, lora)
    assert ours.keys() == trained
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, join(ours, frozen), PARAMETERS))
    if lora:
        assert ours["language"].keys() == {"lora_a", "lora_b"}
    state = init_state(PARAMETERS, make_optimizer(settings(), 10), freeze, lora)
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(ours))


def test_parts_that_do_not_exist_and_models_with_nothing_to_train_are_refused():
    with pytest.raises(UserError, match="no part 'head'"):
        split(PARAMETERS, ("head",), False)
    with pytest.raises(UserError, match="nothing is left"):
        split(PARAMETERS, ("vision", "projector", "language"), False)
    with pytest.raises(UserError, match="step_decay"):
        make_schedule(settings(schedule="step_decay"), 10)


@pytest.mark.parametrize(("schedule", "middle", "last"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_schedules_rise_and_fall(schedule, middle, last):
    rate = make_schedule(settings(schedule=schedule, warmup_updates=4), 24)
    np.testing.assert_allclose([rate(i) / 1e-2 for i in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-5)
    np.testing.assert_allclose(rate(14) / 1e-2, middle, atol=1e-5)
    np.testing.assert_allclose(rate(24) / 1e-2, last, atol=1e-5)
