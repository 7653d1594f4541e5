"""Spacing of repeats in a plan's order."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aesthetic_jax.data.plan_order import order_visits


def smallest_gaps(plan, visits, batch_size):
    """For each sample with several visits: their number, the smallest distance in batches."""
    batches = np.arange(len(plan)) // batch_size
    return [
        (int(visits[i]), int(np.diff(batches[plan == i]).min())) for i in np.flatnonzero(visits > 1)
    ]


@settings(deadline=None, max_examples=150)
@given(
    weights=st.lists(st.sampled_from([0.1, 0.3, 1.0, 5.0]), min_size=1, max_size=60),
    batch_size=st.integers(1, 10),
    num_batches=st.integers(1, 60),
    distance=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_repeats_keep_their_distance(weights, batch_size, num_batches, distance, seed):
    """Every visit comes; repeats stand `distance` apart where there is room, else in other batches
    where there are enough."""
    rng = np.random.default_rng(seed)
    share = np.array(weights) / sum(weights)
    visits = rng.multinomial(batch_size * num_batches, share)
    plan = order_visits(np.random.default_rng(seed), visits, batch_size, distance)
    assert plan.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(plan, minlength=len(visits)), visits)
    for count, gap in smallest_gaps(plan, visits, batch_size):
        if count * distance <= num_batches:
            assert gap >= distance
        elif count <= num_batches:
            assert gap >= 1
    again = order_visits(np.random.default_rng(seed), visits, batch_size, distance)
    np.testing.assert_array_equal(plan, again)


@pytest.mark.parametrize(("count", "gap"), [(12, 4), (16, 3), (25, 2), (40, 1)])
def test_repeats_are_spread_evenly(count, gap):
    """A quarter of the visits are repeats: gaps differ by at most one batch."""
    visits = np.r_[np.full(5, count), np.ones(50 * 20 - 5 * count, int)]
    plan = order_visits(np.random.default_rng(0), visits, 20, 4)
    batches = np.arange(1000) // 20
    for sample in range(5):
        gaps = np.diff(batches[plan == sample])
        assert gap <= gaps.min()
        assert gaps.max() <= gap + 1


def test_more_visits_than_batches_share_them_evenly():
    visits = np.array([25, 25, 10, 20])
    plan = order_visits(np.random.default_rng(0), visits, 8, 4)
    for sample in range(4):
        counts = (plan.reshape(10, 8) == sample).sum(1)
        assert counts.max() - counts.min() <= 1


def test_single_visits_come_at_any_time():
    """Each sample is in each batch equally often, as far as chance allows."""
    counts = np.zeros((20, 10))
    for seed in range(600):
        plan = order_visits(np.random.default_rng(seed), np.ones(20, int), 2, 4)
        counts[plan, np.arange(20) // 2] += 1
    assert ((counts - 60) ** 2 / 54).sum() < 200 + 5 * 20


def test_two_million_visits_are_ordered_within_seconds():
    rng = np.random.default_rng(0)
    visits = rng.multinomial(2_000_000, np.full(1_000_000, 1e-6))
    start = time.process_time()
    plan = order_visits(rng, visits, 64, 4)
    assert time.process_time() - start < 10  # about 0.6 s on a quiet core
    batches = np.empty(len(plan), int)
    order = np.argsort(plan, kind="stable")
    batches = order // 64
    same = np.diff(plan[order]) == 0
    assert np.diff(batches)[same].min() >= 4
