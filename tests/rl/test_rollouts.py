"""Sampling: the distribution of tokens, and independence of batch order, padding and mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.rollouts import Sampling, categorical_by_blocks, sample_completions

pytestmark = pytest.mark.slow  # compiles many samplers

END, PAD, IMAGE = 1, 0, 3
CONFIG = InternVLConfig(
    VisionConfig(width=16, layers=1, heads=2, mlp_width=16, image_size=28, patch_size=14),
    TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=32, vocab_size=24),
    image_token=IMAGE,
    remat="none",
)


@functools.cache
def model():
    """A model that would mostly sample image tokens if they weren't excluded."""
    model = InternVL(CONFIG, rngs=nnx.Rngs(0))
    model.language.head[...] = model.language.head[...].at[:, IMAGE].multiply(4.0)
    return model


@functools.partial(jax.jit, static_argnames=("group", "length", "temperature"))
def _sample(ids, mask, sample_ids, key, group, length, temperature):
    prompt = model().prefill(None, ids, mask)
    sampling = Sampling(group, length, END, PAD, temperature)
    rollout = sample_completions(model(), prompt, sample_ids, key, sampling)
    return rollout, completion_logprobs(model(), prompt, rollout.ids, temperature or 1.0)[0]


def sample(order=(0, 1, 2, 3), padding=0, group=6, length=12, temperature=1.0, seed=0):
    ids = np.random.default_rng(1).integers(4, 24, (4, 6))[list(order)]
    mask = np.arange(6 + padding) < np.array([6, 4, 5, 3])[list(order)][:, None]
    ids = np.where(mask, np.pad(ids, ((0, 0), (0, padding))), PAD)
    key = jax.random.key(seed)
    model()  # made outside of what is traced
    return _sample(
        ids, mask, jnp.array([10, 11, 12, 13])[jnp.array(order)], key, group, length, temperature
    )


def test_noise_belongs_to_the_sample_not_to_the_row_or_the_padding():
    rollout, _ = sample()
    for changes in ({"order": (2, 0, 3, 1)}, {"padding": 3}):
        other, _ = sample(**changes)
        back = np.argsort(changes.get("order", range(4)))
        np.testing.assert_array_equal(rollout.ids, other.ids[back])
        np.testing.assert_allclose(rollout.logprobs, other.logprobs[back], atol=1e-5)
    assert not np.array_equal(rollout.ids, sample(seed=1)[0].ids)
    assert len({tuple(row) for row in np.asarray(rollout.ids).reshape(-1, 12)}) > 12


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(temperature):
    rollout, logprobs = sample(temperature=temperature)
    np.testing.assert_allclose(rollout.logprobs, np.where(rollout.mask, logprobs, 0), atol=1e-5)


def test_completions_end_with_their_first_end_token_and_hold_no_image_token():
    rollout, _ = sample(length=40)
    ids, mask = np.asarray(rollout.ids), np.asarray(rollout.mask)
    assert (ids != IMAGE).all()
    assert rollout.ended.any()
    for row, keep, ended in zip(
        ids.reshape(-1, 40), mask.reshape(-1, 40), rollout.ended.reshape(-1), strict=True
    ):
        assert (END in row) == ended
        assert keep.sum() == (row.tolist().index(END) + 1 if ended else 40)
        assert (row[~keep] == PAD).all()


def test_temperature_0_takes_the_most_likely_token():
    rollout, _ = sample(group=1, temperature=0.0)
    prompts = np.random.default_rng(1).integers(4, 24, (4, 6))
    lengths = (6, 4, 5, 3)
    sequences = np.full((4, 6 + 12), PAD)  # each prompt's tokens, its completion, padding
    for row, length in enumerate(lengths):
        sequences[row, :length] = prompts[row, :length]
        sequences[row, length : length + 12] = rollout.ids[row, 0]
    logits = np.array(jax.jit(model().__call__)(sequences))
    logits[..., IMAGE] = -np.inf
    for row, length in enumerate(lengths):
        likeliest = logits[row, length - 1 : length + 11].argmax(-1)
        keep = np.asarray(rollout.mask)[row, 0]
        np.testing.assert_array_equal(np.asarray(rollout.ids)[row, 0][keep], likeliest[keep])


def test_samples_follow_the_distribution():
    rollout, _ = sample(group=4000, length=2)
    logits = np.array(model()(jnp.array(np.random.default_rng(1).integers(4, 24, (4, 6))[:1])))[
        0, -1
    ]
    logits[IMAGE] = -np.inf
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    counted = np.bincount(np.asarray(rollout.ids)[0, :, 0], minlength=24) / 4000
    np.testing.assert_allclose(counted, expected, atol=5 * np.sqrt(0.25 / 4000))


def test_draws_by_blocks_follow_the_distribution():
    """Four blocks of 128, the last one short; one block and some scores have no probability."""
    scores = 2 * np.random.default_rng(0).normal(size=400).astype(np.float32)
    scores[128:256] = scores[::7] = -np.inf
    scores[399] = 8  # the largest is the last
    draws = 40_000
    drawn = jax.vmap(categorical_by_blocks, (0, None))(
        jax.random.split(jax.random.key(0), draws), jnp.array(scores)
    )
    expected = draws * np.array(jax.nn.softmax(scores))
    counted = np.bincount(drawn, minlength=400)
    assert counted.size == 400
    assert (counted[expected == 0] == 0).all()
    assert (np.abs(counted - expected) <= 5 * np.sqrt(expected) + 5).all()
    blocks = [slice(start, start + 128) for start in (0, 256, 384)]
    np.testing.assert_allclose(
        [counted[block].sum() for block in blocks],
        [expected[block].sum() for block in blocks],
        rtol=0.05,
    )
