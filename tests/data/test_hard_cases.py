import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aesthetic_jax.data.hard_cases import (
    DifficultyTable,
    init_table,
    is_hard,
    make_plan,
    table_statistics,
    update_table,
)


def config(floor=0.1, coverage_quota=0.2, plan_length=100):
    return SimpleNamespace(floor=floor, coverage_quota=coverage_quota, plan_length=plan_length)


def table_of(pass_rate, last_seen=None):
    n = len(pass_rate)
    seen = np.zeros(n, np.int32) if last_seen is None else np.asarray(last_seen, np.int32)
    return DifficultyTable(np.asarray(pass_rate, np.float64), np.ones(n, np.int32), seen)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    round_index=st.integers(0, 1000),
    rates=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=60),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
    quota=st.sampled_from([0.0, 0.3, 1.0]),
    length=st.integers(1, 150),
)
def test_plan_laws(seed, round_index, rates, floor, quota, length):
    table, settings_ = table_of(rates), config(floor, quota, length)
    plan = make_plan(seed, round_index, table, settings_)
    assert plan.dtype == np.int32
    assert plan.shape == (length,)
    counts = np.bincount(plan, minlength=len(rates))
    assert len(counts) == len(rates)
    assert counts.max() - counts.min() <= 1  # so no index comes twice unless all come once
    np.testing.assert_array_equal(plan, make_plan(seed, round_index, table, settings_))


def test_plans_of_different_rounds_and_seeds_differ():
    table = init_table(1000)
    plans = [make_plan(*x, table, config()) for x in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(plan) for plan in plans}) == 3


def test_frequency_follows_difficulty():
    """Over many rounds each class comes up about in proportion to its weight, hard ones first."""
    rates = np.repeat([0.0, 0.5, 1.0], 200)
    table = table_of(rates)
    rounds = 400
    plans = np.concatenate([make_plan(7, r, table, config(0.1, 0.0, 30)) for r in range(rounds)])
    share = np.bincount((plans // 200), minlength=3) / len(plans)
    expected = np.array([1.0, 0.55, 0.1]) / 1.65
    # without replacement the heavy class thins out a little; 30 of 600 keep that below 0.03
    np.testing.assert_allclose(share, expected, atol=0.03)


def test_within_a_class_every_sample_is_as_likely():
    counts = np.zeros(50)
    for r in range(1000):
        counts[make_plan(3, r, table_of(np.full(50, 0.5)), config(0.1, 0.2, 10))] += 1
    chi_square = ((counts - 200) ** 2 / (200 * 0.8)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)


def test_nothing_starves():
    """Even with floor 0 and a solved majority, the quota shows every sample within n / (quota * length) rounds."""
    table = table_of(np.r_[np.ones(90), np.zeros(10)], np.full(100, -1))
    for r in range(10):
        plan = make_plan(0, r, table, config(0.0, 0.5, 20))
        table = table._replace(last_seen=table.last_seen.copy())
        table.last_seen[plan] = r
    assert (table.last_seen >= 0).all()


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_uniform_tables_give_whole_plans(rate, floor):
    plan = make_plan(0, 0, table_of(np.full(40, rate)), config(floor, 0.2, 25))
    assert len(set(plan)) == 25


def test_a_million_samples_are_planned_in_a_moment():
    table = init_table(1_000_000)
    start = time.process_time()
    make_plan(0, 0, table, config(plan_length=50_000))
    assert time.process_time() - start < 2.0  # about 0.2 s on a quiet core


def test_update_moves_the_average():
    table = update_table(init_table(4), np.array([2, 0]), np.array([1.0, 0.25]), 5, SimpleNamespace(decay=0.5))
    np.testing.assert_array_equal(table.pass_rate, [0.25, 0.5, 1.0, 0.5])
    np.testing.assert_array_equal(table.count, [1, 0, 1, 0])
    np.testing.assert_array_equal(table.last_seen, [5, -1, 5, -1])
    table = update_table(table, np.array([2]), np.array([0.0]), 6, SimpleNamespace(decay=0.5))
    assert table.pass_rate[2] == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8), st.randoms())
def test_update_does_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    tables = []
    for order in (rows, shuffled):
        indices, exact = (np.array(x) for x in zip(*order, strict=True))
        tables.append(update_table(init_table(4), indices, exact, 1, SimpleNamespace()))
    for a, b in zip(*tables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_and_hardness():
    table = DifficultyTable(np.array([0.0, 1.0, 0.25, 0.5]), np.array([1, 2, 1, 0]), np.array([1, 1, 1, -1]))
    np.testing.assert_array_equal(is_hard(table, np.arange(4), 0.5), [True, False, True, False])
    assert table_statistics(table) == {
        "hard_cases/unseen": 0.25,
        "hard_cases/pass_rate": pytest.approx(1.25 / 3),
        "hard_cases/never_solved": 0.25,
        "hard_cases/always_solved": 0.25,
    }
    assert table_statistics(init_table(3))["hard_cases/pass_rate"] == 0.0
