import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aesthetic_jax.data.hard_cases import (
    DifficultyTable,
    init_table,
    is_hard,
    make_plan,
    resting,
    table_statistics,
    update_table,
)
from aesthetic_jax.training.config import grpo_config


def config(floor=0.1, coverage_quota=0.2, plan_length=100, **more):
    """The defaults of training with some fields changed."""
    fields = dict(floor=floor, coverage_quota=coverage_quota, plan_length=plan_length)
    settings_ = grpo_config().hard_cases
    with settings_.unlocked():
        settings_.update(fields | more)
    return settings_


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
    more=st.fixed_dictionaries(
        {},
        optional={
            "weighting": st.sampled_from(["continuous", "threshold"]),
            "oversampling": st.sampled_from([0.0, 1.0, 8.0]),
            "power": st.sampled_from([0.5, 1.0, 3.0]),
            "rest_after_completions": st.sampled_from([0, 1, 2]),
            "rest_steps": st.sampled_from([1, 3]),
            "balance_dimensions": st.booleans(),
        },
    ),
    last_seen=st.sampled_from(["never", "now", "by turns"]),
)
def test_plan_laws(seed, round_index, rates, floor, quota, length, more, last_seen):
    """For any table and settings: the right length, even counts, the same plan each time."""
    seen = {
        "never": np.full(len(rates), -1),
        "now": np.full(len(rates), 7),
        "by turns": np.arange(len(rates)) % 5,
    }
    table, settings_ = table_of(rates, seen[last_seen]), config(floor, quota, length, **more)
    dimensions = np.arange(len(rates)) % 3
    plan = make_plan(seed, round_index, table, settings_, dimensions)
    assert plan.dtype == np.int32
    assert plan.shape == (length,)
    counts = np.bincount(plan, minlength=len(rates))
    assert len(counts) == len(rates)
    assert counts.max() - counts.min() <= 1  # so no index comes twice unless all come once
    np.testing.assert_array_equal(plan, make_plan(seed, round_index, table, settings_, dimensions))


def test_plans_of_different_rounds_and_seeds_differ():
    table = init_table(1000)
    plans = [make_plan(*x, table, config()) for x in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(plan) for plan in plans}) == 3


def test_frequency_follows_difficulty():
    """Over many rounds each class appears in proportion to its weight."""
    rates = np.repeat([0.0, 0.5, 1.0], 200)
    table = table_of(rates)
    rounds = 400
    plans = np.concatenate([make_plan(7, r, table, config(0.1, 0.0, 30)) for r in range(rounds)])
    share = np.bincount((plans // 200), minlength=3) / len(plans)
    expected = np.array([1.0, 0.55, 0.1]) / 1.65
    # Drawing without replacement thins the heavy class out; 30 of 600 keep that below 0.03.
    np.testing.assert_allclose(share, expected, atol=0.03)


def shares(table, settings_, classes, rounds=300, **arguments):
    """The share of each class in many rounds' plans."""
    plans = np.concatenate([make_plan(7, r, table, settings_, **arguments) for r in range(rounds)])
    return np.bincount(classes[plans], minlength=classes.max() + 1) / len(plans)


def test_threshold_weights_and_oversampling():
    """Samples below the threshold appear `oversampling` times as often, however hard they are."""
    rates = np.repeat([0.0, 0.4, 0.5, 1.0], 200)
    classes = np.arange(800) // 200
    settings_ = config(0.0, 0.0, 20, weighting="threshold", oversampling=4.0)
    np.testing.assert_allclose(
        shares(table_of(rates), settings_, classes), np.array([4, 4, 1, 1]) / 10, atol=0.03
    )
    settings_ = config(0.0, 0.0, 20, weighting="threshold", oversampling=4.0, hard_below=0.3)
    np.testing.assert_allclose(
        shares(table_of(rates), settings_, classes), np.array([4, 1, 1, 1]) / 7, atol=0.03
    )


@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=2, max_size=5, unique=True),
    st.floats(0.3, 3),
)
@settings(deadline=None, max_examples=15)
def test_harder_classes_come_up_more_often(rates, power):
    """100 samples per class; neighbours of almost equal weight get 4 standard deviations."""
    rates = sorted(rates)
    classes = np.repeat(np.arange(len(rates)), 100)
    share = shares(
        table_of(np.repeat(rates, 100)), config(0.05, 0.0, 20, power=power), classes, rounds=150
    )
    assert (np.diff(share) < 4 * np.sqrt(0.25 * 2 / 3000)).all()
    assert share[0] > share[-1]


def test_an_unseen_sample_weighs_as_its_prior():
    classes = np.arange(600) // 300
    table = init_table(600, prior=0.25)
    table.pass_rate[300:] = 0.75
    share = shares(table, config(0.0, 0.0, 20), classes)
    np.testing.assert_allclose(share, [0.75, 0.25], atol=0.03)


def test_dimensions_are_balanced():
    """400 of 500 samples are of one dimension; weights inside a dimension stay as they are."""
    dimensions = np.repeat([0, 1], [400, 100])
    table = table_of(np.tile([0.0, 1.0], 250))
    share = shares(table, config(0.25, 0.0, 10), dimensions, dimensions=dimensions)
    np.testing.assert_allclose(share, [0.8, 0.2], atol=0.03)
    settings_ = config(0.25, 0.0, 10, balance_dimensions=True)
    np.testing.assert_allclose(
        shares(table, settings_, dimensions, dimensions=dimensions), [0.5, 0.5], atol=0.04
    )
    easy = np.arange(500) % 2
    np.testing.assert_allclose(
        shares(table, settings_, easy, dimensions=dimensions), [0.8, 0.2], atol=0.04
    )


def test_unsolved_samples_rest_and_are_tried_again():
    """After three visits without a right answer: 10 steps of rest, one more visit, rest again."""
    settings_ = config(0.1, 0.3, 5, rest_after_completions=24, rest_steps=10)
    table = init_table(20)
    visits = []
    for step in range(1, 61):
        plan = make_plan(0, step, table, settings_)
        visits += [step] * (0 in plan)
        table = update_table(table, plan, (plan != 0).astype(float), step, settings_, 8)
        if len(visits) == 3:
            assert resting(table, settings_)[0] == (step < visits[-1] + 10)
    assert np.diff(visits)[2:].min() >= 10
    assert np.diff(visits)[2:].max() <= 10 + 4
    assert len(visits) >= 6
    solved = table._replace(pass_rate=np.full(20, 0.01))
    assert not resting(solved, settings_).any()
    assert not resting(table, config()).any()


def test_a_table_of_resting_samples_still_gives_plans():
    """Samples not visited for longest come first."""
    table = table_of(np.zeros(50), np.arange(50))
    plan = make_plan(0, 0, table, config(0.1, 1.0, 10, rest_after_completions=1, rest_steps=1000))
    assert set(plan) == set(range(10))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(2, 60),
    st.floats(0.05, 1.0),
    st.integers(1, 70),
    st.sampled_from([0.0, 1.0]),
    st.integers(0, 99),
)
def test_every_sample_comes_within_the_coverage_period(n, quota, length, floor, seed):
    """From any initial table, whichever samples are solved."""
    rng = np.random.default_rng(seed)
    table = table_of(rng.integers(0, 2, n), rng.integers(-1, 9, n))
    settings_ = config(floor, quota, length)
    rest = length % n
    period = 1 if length >= n else int(np.ceil(n / np.ceil(rest * quota)))
    seen = set()
    for r in range(period):
        plan = make_plan(seed, r, table, settings_)
        seen |= set(plan)
        table = update_table(
            table, plan, rng.integers(0, 2, length).astype(float), 10 + r, settings_
        )
    assert seen == set(range(n))


def test_within_a_class_every_sample_is_as_likely():
    counts = np.zeros(50)
    for r in range(1000):
        counts[make_plan(3, r, table_of(np.full(50, 0.5)), config(0.1, 0.2, 10))] += 1
    chi_square = ((counts - 200) ** 2 / (200 * 0.8)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)


def test_nothing_starves():
    """Even with floor 0, the quota shows every sample within n / (quota * length) rounds."""
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


def test_a_million_samples_are_planned_within_a_second():
    table = init_table(1_000_000)
    tables = (
        table,
        table_of(np.zeros(1_000_000)),
        table_of(np.ones(1_000_000), np.arange(1_000_000)),
    )
    dimensions = np.arange(1_000_000) % 4
    for table in tables:
        start = time.process_time()
        make_plan(
            0,
            0,
            table,
            config(plan_length=50_000, rest_after_completions=1, balance_dimensions=True),
            dimensions,
        )
        assert time.process_time() - start < 1.0  # about 0.05 s on a quiet core
        tracemalloc.start()
        make_plan(
            0,
            0,
            table,
            config(plan_length=50_000, rest_after_completions=1, balance_dimensions=True),
            dimensions,
        )
        assert tracemalloc.get_traced_memory()[1] < 100e6
        tracemalloc.stop()


def test_update_moves_the_average():
    settings_ = config(decay=0.25)
    table = update_table(init_table(4), np.array([2, 0]), np.array([1.0, 0.25]), 5, settings_)
    np.testing.assert_array_equal(table.pass_rate, [0.25, 0.5, 1.0, 0.5])
    np.testing.assert_array_equal(table.count, [1, 0, 1, 0])
    np.testing.assert_array_equal(table.last_seen, [5, -1, 5, -1])
    table = update_table(table, np.array([2, 1]), np.array([0.0, 0.0]), 6, settings_, 8)
    np.testing.assert_array_equal(table.pass_rate, [0.25, 0.0, 0.25, 0.5])
    np.testing.assert_array_equal(table.count, [1, 8, 9, 0])


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8
    ),
    st.randoms(),
)
def test_update_does_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    tables = []
    for order in (rows, shuffled):
        indices, exact = (np.array(x) for x in zip(*order, strict=True))
        tables.append(update_table(init_table(4), indices, exact, 1, config()))
    for a, b in zip(*tables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_and_hardness():
    table = DifficultyTable(
        np.array([0.0, 1.0, 0.25, 0.5]), np.array([1, 2, 1, 0]), np.array([1, 1, 1, -1])
    )
    np.testing.assert_array_equal(is_hard(table, np.arange(4), 0.5), [True, False, True, False])
    assert table_statistics(table) == {
        "hard_cases/unseen": 0.25,
        "hard_cases/pass_rate": pytest.approx(1.25 / 3),
        "hard_cases/never_solved": 0.25,
        "hard_cases/always_solved": 0.25,
    }
    assert table_statistics(init_table(3))["hard_cases/pass_rate"] == 0.0
