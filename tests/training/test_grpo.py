"""The GRPO step's parts: what an update does to the policy, and how completions are scored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.rl.rollouts import Rollout
from aesthetic_jax.training.config import grpo_config
from aesthetic_jax.training.grpo import (
    Experience,
    gold_letters,
    grpo_update,
    logprobs,
    score,
    trim_completions,
    vision_features,
)
from aesthetic_jax.training.state import init_state

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
        prompt_ids=jnp.asarray(np.concatenate([np.full((4, 1), 3), rng.integers(4, 24, (4, 5))], axis=1)),
        prompt_mask=jnp.ones((4, 6), bool),
        completion_ids=jnp.asarray(rng.integers(4, 24, (4, 2, 7))),
        completion_mask=jnp.asarray(np.arange(7) < rng.integers(3, 8, (4, 2, 1))),
        advantages=jnp.tile(jnp.array([1.0, -1.0]), (4, 1)),
        old_logprobs=None,
        ref_logprobs=None,
    )
    return graph, init_state(nnx.to_pure_dict(parameters), optax.adam(1e-3), (), False), experience


@functools.partial(jax.jit, static_argnames="micro_batches")
def one_update(experience, micro_batches=1):
    graph, state, _ = setup()
    return grpo_update(state, experience, graph=graph, optimizer=optax.adam(1e-3), micro_batches=micro_batches, **LOSS)


def sums(parameters, experience):
    """Log-probability of each completion, [B, G]."""
    values = logprobs(parameters, experience, experience.completion_ids, graph=setup()[0], temperature=1.0)
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
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after.trained, state.trained))


def test_micro_batches_give_the_same_gradient():
    _, _, experience = setup()
    (_, whole), (_, parts) = one_update(experience), one_update(experience, micro_batches=2)
    np.testing.assert_allclose(whole["loss"], parts["loss"], atol=1e-6)
    np.testing.assert_allclose(whole["grad_norm"], parts["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_reference_inside_the_update_is_the_reference_before_it(micro_batches):
    graph, state, experience = setup()
    reference = jax.tree.map(lambda x: 1.1 * x, state.parameters)
    before = logprobs(reference, experience, experience.completion_ids, graph=graph, temperature=1.0)
    settings = dict(graph=graph, optimizer=optax.adam(1e-3), micro_batches=micro_batches, beta=0.1, **LOSS)
    update = jax.jit(functools.partial(grpo_update, **settings))
    _, given = update(state, experience._replace(ref_logprobs=before))
    _, computed = update(state, experience, reference)
    assert given["kl"] > 1e-4
    for name in ("loss", "kl", "grad_norm"):
        np.testing.assert_allclose(computed[name], given[name], rtol=1e-5)


def test_features_of_a_frozen_tower_take_the_place_of_tiles():
    graph, state, experience = setup()
    features = vision_features(state.parameters, experience.tiles, graph=graph)
    assert features.shape == (4, 1, 1, 64)
    (_, tiles), (_, cached) = one_update(experience), one_update(experience._replace(tiles=features))
    np.testing.assert_allclose(cached["loss"], tiles["loss"], atol=1e-6)


def test_trimming_keeps_every_token():
    mask = jnp.arange(16) < jnp.array([[3, 7], [5, 1]])[..., None]
    rollout = Rollout(mask.astype(jnp.int32), mask, mask * -1.0, jnp.ones((2, 2), bool))
    for buckets, length in (((4, 8, 16), 8), ((7, 16), 7), ((4, 6), 16)):
        trimmed = trim_completions(rollout, buckets)
        assert {x.shape for x in trimmed[:3]} == {(2, 2, length)}
        assert trimmed.mask.sum() == mask.sum()


@pytest.mark.parametrize(
    ("text", "reward", "exact"),
    [
        ("<think>x</think><answer>A,C</answer>", 1.0, 1),
        ("<think>x</think><answer>A</answer>", 0.9 * 0.5 + 0.1, 0),
        ("<think>x</think><answer>A,B</answer>", 0.1, 0),
        ("so <answer>A,C</answer>", 0.9, 1),
        ("<think>x</think>", 0.0, 0),
    ],
)
def test_scores_follow_the_reward_and_difficulty_the_exact_answer(text, reward, exact):
    class Batch:
        answer, num_options = np.array([0b101]), np.array([4])

    config = grpo_config().reward
    config.variant = "subset"
    scores = score([[text]], Batch, config, 0.0)
    np.testing.assert_allclose(scores.reward, [[reward]], rtol=1e-6)
    assert scores.exact == exact
    config.dpa_anneal = True  # at the end of training only the exact answer counts
    at_the_end = score([[text]], Batch, config, 1.0)
    np.testing.assert_allclose(at_the_end.reward, 0.9 * exact + 0.1 * at_the_end.format, rtol=1e-6)
    assert gold_letters(0b101) == {"A", "C"}
