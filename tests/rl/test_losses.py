"""Losses against TRL 1.16's own, stored in golden_losses.npz, and their invariants."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aesthetic_jax.rl.losses import LOSS_TYPES, policy_loss, sft_loss

HERE = pathlib.Path(__file__).parent
GOLDEN = dict(np.load(HERE / "golden_losses.npz"))
_spec = importlib.util.spec_from_file_location("make_golden_losses", HERE / "make_golden_losses.py")
maker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(maker)
ARRAYS = maker.inputs()


def loss_and_gradient(arrays, case):
    def loss(logprobs):
        ref = arrays["ref_logprobs"] if case.get("beta") else None
        return policy_loss(
            logprobs, arrays["old_logprobs"], ref, arrays["advantages"], arrays["mask"], **case
        )

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
        jnp.array(arrays["logprobs"])
    )
    return value, gradient, metrics


def test_golden_inputs_are_those_of_the_script():
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(GOLDEN[name], array)


@pytest.mark.parametrize("name", maker.CASES)
def test_policy_loss_equals_trl(name):
    value, gradient, _ = loss_and_gradient(ARRAYS, maker.CASES[name])
    np.testing.assert_allclose(value, GOLDEN[f"{name}/loss"], atol=1e-5)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}/gradient"], atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name", maker.CASES)
def test_golden_losses_are_what_trl_computes_today(name):
    pytest.importorskip("trl")
    loss, gradient = maker.trl_loss(maker.CASES[name], ARRAYS)
    np.testing.assert_allclose(loss, GOLDEN[f"{name}/loss"], atol=1e-6)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}/gradient"], atol=1e-7)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_never_matters(loss_type, garbage):
    spoiled = dict(ARRAYS)
    for name in ("logprobs", "old_logprobs", "ref_logprobs"):
        spoiled[name] = np.where(ARRAYS["mask"], ARRAYS[name], garbage).astype(np.float32)
    clean, dirty = (
        loss_and_gradient(x, dict(loss_type=loss_type, beta=0.1)) for x in (ARRAYS, spoiled)
    )
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_on_policy_gradient_is_the_policy_gradient(loss_type):
    """The gradient is then minus the advantage over the reduction's count."""

    def loss(logprobs):
        return policy_loss(
            logprobs, None, None, ARRAYS["advantages"], ARRAYS["mask"], loss_type=loss_type
        )[0]

    gradient = jax.grad(loss)(jnp.array(ARRAYS["logprobs"]))
    mask = ARRAYS["mask"]
    counts = {
        "grpo": np.maximum(mask.sum(-1, keepdims=True), 1) * mask[..., 0].size,
        "bnpo": mask.sum(),
        "dr_grpo": mask.size,
        "dapo": mask.sum(),
    }
    np.testing.assert_allclose(
        gradient, -ARRAYS["advantages"][..., None] * mask / counts[loss_type], atol=1e-7
    )


def test_metrics_count_clipped_tokens():
    logprobs = jnp.log(jnp.array([[[0.5, 0.5], [0.5, 0.5]]]))
    old = jnp.log(jnp.array([[[0.4, 0.5], [0.8, 0.5]]]))  # ratios 1.25, 1, 0.625, 1
    mask = jnp.ones((1, 2, 2), bool)
    advantages = jnp.array([[1.0, -1.0]])
    _, metrics = policy_loss(logprobs, old, None, advantages, mask, loss_type="grpo")
    assert float(metrics["clip_ratio/high"]) == float(metrics["clip_ratio/low"]) == 0.25
    np.testing.assert_allclose(metrics["ratio/max"], 1.25, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio/mean"], 3.875 / 4, rtol=1e-6)


def test_sft_loss_is_the_mean_over_supervised_tokens():
    expected = -ARRAYS["logprobs"][ARRAYS["mask"]].mean()
    np.testing.assert_allclose(
        sft_loss(jnp.array(ARRAYS["logprobs"]), ARRAYS["mask"]), expected, rtol=1e-6
    )
    half = sft_loss(jnp.array(ARRAYS["logprobs"]), ARRAYS["mask"], 2 * ARRAYS["mask"].sum())
    np.testing.assert_allclose(half, expected / 2, rtol=1e-6)


def test_unknown_names_are_refused():
    arrays = [
        ARRAYS[name] for name in ("logprobs", "old_logprobs", "ref_logprobs", "advantages", "mask")
    ]
    with pytest.raises(ValueError, match="choose from grpo, bnpo"):
        policy_loss(*arrays, loss_type="ppo")
    with pytest.raises(ValueError, match="token or sequence"):
        policy_loss(*arrays, loss_type="grpo", importance_sampling_level="word")
