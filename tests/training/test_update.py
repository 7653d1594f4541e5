"""The optimiser update: microbatches, freezing, LoRA, learning-rate schedules."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.config import base_config
from aesthetic_jax.training.optimizer import make_optimizer, make_schedule
from aesthetic_jax.training.state import init_state, join, split
from aesthetic_jax.training.update import make_update, split_microbatches

PARAMETERS = {
    "vision": {"kernel": jnp.ones((3, 2)), "scale": jnp.ones(2)},
    "projector": {"kernel": jnp.full((2, 2), 0.5)},
    "language": {
        "kernel": jnp.ones((2, 1)),
        "lora_a": jnp.ones((2, 1)),
        "lora_b": jnp.zeros((1, 1)),
    },
}


class Rows(NamedTuple):
    x: jax.Array
    y: jax.Array
    completion_mask: jax.Array


def settings(**changes) -> ConfigDict:
    config = base_config().optimizer
    config.update({"learning_rate": 1e-2, "schedule": "constant"} | changes)
    return config


def one_update(sizes: tuple[int, ...] = (8,), **changes):
    """One update of a linear regression through three layers, on 8 rows in these microbatches."""

    def loss_fn(model, rows, tokens, _):
        hidden = (
            rows.x
            @ model["vision"]["kernel"]
            * model["vision"]["scale"]
            @ model["projector"]["kernel"]
        )
        error = hidden @ model["language"]["kernel"] - rows.y
        return jnp.square(error).sum() / tokens, {
            "rows": jnp.float32(len(rows.x)),
            "error/max": error.max(),
        }

    optimizer = make_optimizer(settings(**changes), 10)
    before = init_state(PARAMETERS, optimizer, (), False)
    state = jax.tree.map(jnp.copy, before)  # the update donates the state's memory
    x, y = (
        jax.random.normal(jax.random.key(0), (8, 3)),
        jax.random.normal(jax.random.key(1), (8, 1)),
    )
    batch = Rows(x, y, jnp.ones((8, 1, 1), bool))
    ends = np.cumsum(sizes)
    microbatches = [
        jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
        for a, b in zip(ends - sizes, ends, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "aesthetic_jax.training.update.nnx.merge", lambda graph, parameters: parameters
        )
        update = make_update(loss_fn, graph=None, optimizer=optimizer)
        return before, *update(state, microbatches)


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (5, 1, 2)])
def test_averaged_gradients_equal_those_of_the_whole_batch(sizes):
    _, whole, metrics = one_update()
    _, cut, accumulated = one_update(sizes)
    for a, b in zip(jax.tree.leaves(whole.trained), jax.tree.leaves(cut.trained), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], accumulated["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], accumulated["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(accumulated["rows"], 8 / len(sizes), rtol=1e-6)
    np.testing.assert_allclose(metrics["error/max"], accumulated["error/max"], rtol=1e-6)


@given(seed=st.integers(0, 999), count=st.sampled_from([1, 2, 3, 6]))
def test_microbatches_hold_every_row_once_and_short_ones_first(seed, count):
    lengths = np.random.default_rng(seed).integers(0, 9, (6, 2))
    batch = {"row": np.arange(6), "length": lengths}
    cut = split_microbatches(batch, np.arange(9) < lengths[..., None], count)
    assert [len(rows["row"]) for rows in cut] == [6 // count] * count
    assert sorted(np.concatenate([rows["row"] for rows in cut])) == list(range(6))
    longest = [rows["length"].max() for rows in cut]
    assert longest == sorted(longest)
    for rows in cut:
        np.testing.assert_array_equal(rows["length"], lengths[rows["row"]])


def test_vision_and_projector_move_by_their_share_of_the_learning_rate():
    before, full, _ = one_update(weight_decay=0.0)
    _, slow, _ = one_update(weight_decay=0.0, vision_lr_scale=0.25)
    for part, factor in (("vision", 0.25), ("projector", 0.25), ("language", 1.0)):
        moved, whole = (
            x.trained[part]["kernel"] - before.trained[part]["kernel"] for x in (slow, full)
        )
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
def test_split_and_join_are_inverse_and_leave_no_optimiser_state_for_what_is_frozen(
    freeze, lora, trained
):
    ours, frozen = split(PARAMETERS, freeze, lora)
    assert ours.keys() == trained
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, join(ours, frozen), PARAMETERS))
    if lora:
        assert ours["language"].keys() == {"lora_a", "lora_b"}
    state = init_state(PARAMETERS, make_optimizer(settings(), 10), freeze, lora)
    moments = sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(ours))


def test_unknown_modules_and_models_with_nothing_to_train_are_refused():
    with pytest.raises(UserError, match="no module 'head'"):
        split(PARAMETERS, ("head",), False)
    with pytest.raises(UserError, match="nothing is left"):
        split(PARAMETERS, ("vision", "projector", "language"), False)
    with pytest.raises(UserError, match="step_decay"):
        make_schedule(settings(schedule="step_decay"), 10)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_schedules_rise_and_fall(schedule, middle, last):
    rate = make_schedule(settings(schedule=schedule, warmup_updates=4), 24)
    np.testing.assert_allclose(
        [rate(i) / 1e-2 for i in range(4)], [0.25, 0.5, 0.75, 1.0], rtol=1e-5
    )
    np.testing.assert_allclose(rate(14) / 1e-2, middle, atol=1e-5)
    np.testing.assert_allclose(rate(24) / 1e-2, last, atol=1e-5)
