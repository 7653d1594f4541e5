"""The GRPO update: its effect on the policy, with microbatches, a reference, frozen features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training.grpo import (
    Experience,
    logprobs,
    make_grpo_update,
    trim_completions,
    vision_features,
)
from aesthetic_jax.training.state import init_state
from aesthetic_jax.training.update import split_microbatches

CONFIG = InternVLConfig(
    VisionConfig(width=16, layers=1, heads=2, mlp_width=16, image_size=28, patch_size=14),
    TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=32, vocab_size=24),
    image_token=3,
    remat="none",
)
LOSS = dict(loss_type="dapo", temperature=1.0)


@functools.cache
def setup():
    graph, parameters = nnx.split(InternVL(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    experience = Experience(
        tiles=jnp.asarray(rng.integers(0, 255, (4, 1, 28, 28, 3), np.uint8)),
        prompt_ids=jnp.asarray(
            np.concatenate([np.full((4, 1), 3), rng.integers(4, 24, (4, 5))], axis=1)
        ),
        prompt_mask=jnp.ones((4, 6), bool),
        completion_ids=jnp.asarray(rng.integers(4, 24, (4, 2, 7))),
        completion_mask=jnp.asarray(np.arange(7) < rng.integers(3, 8, (4, 2, 1))),
        advantages=jnp.tile(jnp.array([1.0, -1.0]), (4, 1)),
        old_logprobs=None,
        ref_logprobs=None,
    )
    return graph, init_state(nnx.to_pure_dict(parameters), optax.adam(1e-3), (), False), experience


@functools.cache
def make_one_update(**settings):
    return make_grpo_update(setup()[0], optax.adam(1e-3), **LOSS | settings)


def one_update(experience, microbatches=1, reference=None, **settings):
    """One update from the same state, on microbatches trimmed to their completions."""
    state = jax.tree.map(jnp.copy, setup()[1])  # the update donates the state's memory
    cut = split_microbatches(experience, experience.completion_mask, microbatches)
    cut = [trim_completions(microbatch, (4, 5, 6)) for microbatch in cut]
    return make_one_update(**settings)(state, cut, reference)


def sums(parameters, experience):
    """Log-probability of each completion, [B, G]."""
    values = logprobs(
        parameters, experience, experience.completion_ids, graph=setup()[0], temperature=1.0
    )
    return np.where(experience.completion_mask, values, 0).sum(-1)


def test_an_update_makes_what_was_better_likelier():
    _, state, experience = setup()
    after, metrics = one_update(experience)
    change = sums(after.parameters, experience) - sums(state.parameters, experience)
    assert (change[:, 0] > change[:, 1]).all()
    np.testing.assert_allclose(metrics["ratio/mean"], 1.0, rtol=1e-6)


def test_equal_rewards_change_nothing():
    _, state, experience = setup()
    after, metrics = one_update(experience._replace(advantages=jnp.zeros((4, 2))))
    assert metrics["grad_norm"] == 0
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), after.trained, state.trained)
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_microbatches_of_several_lengths_give_the_same_gradient(loss_type):
    _, _, experience = setup()
    settings = dict(loss_type=loss_type, max_completion_length=7)
    (_, whole), (_, cut) = (
        one_update(experience, **settings),
        one_update(experience, microbatches=4, **settings),
    )
    for name in whole:
        np.testing.assert_allclose(whole[name], cut[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_reference_inside_the_update_is_the_reference_before_it(microbatches):
    graph, state, experience = setup()
    reference = jax.tree.map(lambda x: 1.1 * x, state.parameters)
    before = logprobs(
        reference, experience, experience.completion_ids, graph=graph, temperature=1.0
    )
    _, given = one_update(experience._replace(ref_logprobs=before), microbatches, beta=0.1)
    _, computed = one_update(experience, microbatches, reference, beta=0.1)
    assert given["kl"] > 1e-4
    for name in ("loss", "kl", "grad_norm"):
        np.testing.assert_allclose(computed[name], given[name], rtol=1e-5)


def test_features_of_a_frozen_tower_take_the_place_of_tiles():
    graph, state, experience = setup()
    features = vision_features(state.parameters, experience.tiles, graph=graph)
    assert features.shape == (4, 1, 1, 64)
    (_, tiles), (_, cached) = (
        one_update(experience),
        one_update(experience._replace(tiles=None, features=features)),
    )
    np.testing.assert_allclose(cached["loss"], tiles["loss"], atol=1e-6)


def test_trimming_keeps_every_token():
    mask = jnp.arange(16) < jnp.array([[3, 7], [5, 1]])[..., None]
    _, _, experience = setup()
    experience = experience._replace(
        completion_ids=mask.astype(jnp.int32), completion_mask=mask, old_logprobs=-1.0 * mask
    )
    for buckets, length in (((4, 8, 16), 8), ((7, 16), 7), ((4, 6), 16)):
        trimmed = trim_completions(experience, buckets)
        for array in (trimmed.completion_ids, trimmed.completion_mask, trimmed.old_logprobs):
            assert array.shape == (2, 2, length)
            assert abs(array.sum()) == mask.sum()
        assert trimmed.ref_logprobs is None
