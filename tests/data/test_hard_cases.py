import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aesthetic_jax.data.hard_cases import (
    DifficultyTable,
    draw_visits,
    hardest,
    hardness,
    init_table,
    is_hard,
    make_plan,
    resting,
    sample_weights,
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
    rates, count = np.asarray(pass_rate, np.float64), np.full(n, 64, np.int32)
    return DifficultyTable(rates, count, seen, np.rint(64 * rates).astype(np.int32))


def counted(num_exact, count):
    """A table of samples with so many exact answers among so many completions."""
    num_exact, count = np.asarray(num_exact, np.int32), np.asarray(count, np.int32)
    rates = np.where(count > 0, num_exact / np.maximum(count, 1), 0.5)
    return DifficultyTable(rates, count, np.zeros(len(count), np.int32), num_exact)


def due_visits(weights, settings_):
    """Visits due outside the quota."""
    quota = int(np.ceil(settings_.plan_length * settings_.coverage_quota))
    return (settings_.plan_length - quota) * np.asarray(weights) / np.sum(weights)


def count_visits(table, settings_, *arguments, seed=0, round_index=0):
    plan = make_plan(seed, round_index, table, settings_, *arguments)
    return np.bincount(plan, minlength=len(table.count))


def shares(table, settings_, classes, rounds=300, **arguments):
    """The share of each class in many rounds' plans."""
    plans = np.concatenate([make_plan(7, r, table, settings_, **arguments) for r in range(rounds)])
    return np.bincount(classes[plans], minlength=classes.max() + 1) / len(plans)


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**31),
    rates=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=60),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
    quota=st.sampled_from([0.0, 0.3, 1.0]),
    length=st.integers(1, 150),
    more=st.fixed_dictionaries(
        {},
        optional={
            "weighting": st.sampled_from(["failure", "threshold", "variance"]),
            "oversampling": st.sampled_from([0.0, 1.0, 8.0]),
            "power": st.sampled_from([0.5, 1.0, 3.0]),
            "rest_after_completions": st.sampled_from([0, 1, 65]),
            "rest_steps": st.sampled_from([1, 3]),
            "balance_dimensions": st.booleans(),
            "round_steps": st.sampled_from([1, 7, 50]),
            "repeat_distance": st.sampled_from([1, 4]),
        },
    ),
    last_seen=st.sampled_from(["never", "now", "by turns"]),
)
def test_plan_laws(seed, rates, floor, quota, length, more, last_seen):
    """For any table and settings: right length, visits as due, rest, the same plan each time."""
    size = len(rates)
    seen = {
        "never": np.full(size, -1),
        "now": np.full(size, 7),
        "by turns": np.arange(size) % 5,
    }
    table, settings_ = table_of(rates, seen[last_seen]), config(floor, quota, length, **more)
    facts = np.arange(size) % 3, np.arange(size) % 7 + 2  # dimensions, numbers of options
    plan = make_plan(seed, 3, table, settings_, *facts)
    assert plan.dtype == np.int32
    assert plan.shape == (length,)
    counts = np.bincount(plan, minlength=size)
    assert len(counts) == size
    np.testing.assert_array_equal(plan, make_plan(seed, 3, table, settings_, *facts))

    rests = resting(table, settings_, facts[1])
    awake = ~rests if not rests.all() else rests
    assert not counts[~awake].any()
    weights = sample_weights(table, settings_, *facts)
    if settings_.balance_dimensions:
        sums = np.bincount(facts[0], weights)[facts[0]]
        weights /= np.where(sums > 0, sums, 1)
    due = due_visits(weights, settings_)
    assert (counts >= np.floor(due + 1e-6)).all()
    of_quota = np.maximum(counts - np.ceil(due - 1e-6), 0)
    assert of_quota.sum() <= np.ceil(length * quota)
    if (counts[awake] == 0).any():  # drawn samples got nothing of the quota
        assert (counts[due <= 1] <= 1).all()


@settings(deadline=None, max_examples=60)
@given(
    weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=80),
    length=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_a_sample_gets_the_floor_or_the_ceiling_of_its_due(weights, length, seed):
    table, settings_ = table_of(1 - np.array(weights)), config(0.0, 0.0, length)
    due = due_visits(weights, settings_)
    counts = count_visits(table, settings_, seed=seed)
    assert ((counts >= np.floor(due + 1e-6)) & (counts <= np.ceil(due - 1e-6))).all()


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("asked", [2.0, 10.0])
def test_the_ratio_of_visits_is_the_ratio_asked(ratio, asked):
    """Whatever R / n; the quota comes on top, and never to samples drawn already."""
    is_hard_ = np.arange(2000) < 500
    table = table_of(np.where(is_hard_, 0.0, 1.0))
    length, rounds = round(ratio * 2000), 60

    def visits(quota_visits):
        settings_ = config(
            coverage_quota=quota_visits / (length + quota_visits),
            plan_length=length + quota_visits,
            weighting="threshold",
            oversampling=asked,
        )
        generators = (np.random.default_rng(r) for r in range(rounds))
        return np.array([draw_visits(rng, table, settings_) for rng in generators])

    due, both = visits(0), visits(10)
    total = due.sum(0)
    assert total[is_hard_].mean() / total[~is_hard_].mean() == pytest.approx(asked, rel=0.1)
    assert ((both - due).sum(1) == 10).all()
    assert (both >= due).all()
    assert (due[both > due] == 0).all() or (due > 0).all(1).any()


def test_plans_of_different_rounds_and_seeds_differ():
    table = init_table(1000)
    plans = [make_plan(*x, table, config()) for x in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(plan) for plan in plans}) == 3


def test_a_plan_keeps_repeats_apart():
    """Samples due 8 visits in 50 batches, 4 batches apart; the config says how far."""
    table = table_of(np.r_[np.zeros(10), np.ones(300)])
    for distance in (4, 6):
        settings_ = config(0.01, 0.2, 100, repeat_distance=distance, round_steps=50)
        plan = make_plan(0, 0, table, settings_)
        batches = np.arange(100) // 2
        gaps = [np.diff(batches[plan == i]).min() for i in range(10)]
        assert min(gaps) >= distance


def test_frequency_follows_difficulty():
    """Over many rounds each class appears in proportion to its weight."""
    share = shares(
        table_of(np.repeat([0.0, 0.5, 1.0], 200)), config(0.1, 0.0, 30), np.arange(600) // 200
    )
    np.testing.assert_allclose(share, np.array([1.0, 0.55, 0.1]) / 1.65, atol=0.025)


def test_threshold_weights_and_oversampling():
    """Samples below the threshold appear `oversampling` times as often, however hard they are."""
    table, classes = table_of(np.repeat([0.0, 0.4, 0.5, 1.0], 200)), np.arange(800) // 200
    settings_ = config(0.0, 0.0, 20, weighting="threshold", oversampling=4.0)
    expected = np.array([4, 4, 1, 1]) / 10
    np.testing.assert_allclose(shares(table, settings_, classes), expected, atol=0.025)
    settings_.hard_below = 0.3
    expected = np.array([4, 1, 1, 1]) / 7
    np.testing.assert_allclose(shares(table, settings_, classes), expected, atol=0.025)


@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), min_size=2, max_size=5, unique=True),
    st.floats(0.3, 3),
)
@settings(deadline=None, max_examples=15)
def test_classes_come_up_by_a_power_of_their_failure_rates(rates, power):
    settings_, classes = config(0.05, 0.0, 20, power=power), np.repeat(np.arange(len(rates)), 100)
    share = shares(table_of(np.repeat(rates, 100)), settings_, classes, rounds=150)
    weights = 0.05 + 0.95 * (1 - np.array(rates)) ** power
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.04)


def test_variance_weights_are_largest_where_half_of_the_answers_are_known():
    """Against the formula: samples of 2 and of 4 options, three dimensions, one of them unseen."""
    num_exact, count = np.array([0, 4, 8, 0, 3, 0]), np.array([8, 8, 8, 8, 8, 0])
    dimensions, options = np.array([0, 0, 0, 1, 1, 2]), np.array([4, 4, 2, 4, 4, 4])
    table, settings_ = counted(num_exact, count), config(0.1, weighting="variance", prior=0.3)

    def expected(rates):
        p = (num_exact + 4 * np.array(rates)) / (count + 4)
        c = 0.5**options
        q = np.maximum(0, (p - c) / (1 - c))
        return 4 * q * (1 - q)

    hard = hardness(table, settings_, dimensions, options)
    np.testing.assert_allclose(hard, expected([0.5, 0.5, 0.5, 3 / 16, 3 / 16, 0.3]), atol=1e-12)
    assert hard[3] == 0  # (0 + 4 * 3 / 16) / 12 is 1 / 16, a guess
    weights = sample_weights(table, settings_, dimensions, options)
    np.testing.assert_allclose(weights, 0.1 + 0.9 * hard, atol=1e-12)
    whole = hardness(table, settings_, num_options=options)
    np.testing.assert_allclose(whole, expected(np.full(6, 15 / 40)), atol=1e-12)
    unseen = hardness(init_table(3), config(weighting="variance", prior=0.5))
    np.testing.assert_allclose(unseen, 4 * (7 / 15) * (8 / 15))


def test_an_unseen_sample_weighs_as_its_prior():
    classes = np.arange(600) // 300
    table = init_table(600, prior=0.25)
    table.pass_rate[300:] = 0.75
    share = shares(table, config(0.0, 0.0, 20), classes)
    np.testing.assert_allclose(share, [0.75, 0.25], atol=0.025)


def test_dimensions_are_balanced():
    """400 of 500 samples are of one dimension; weights inside a dimension stay as they are."""
    dimensions, easy = np.repeat([0, 1], [400, 100]), np.arange(500) % 2
    table, settings_ = table_of(np.tile([0.0, 1.0], 250)), config(0.25, 0.0, 10)
    for classes, balance, expected in (
        (dimensions, False, [0.8, 0.2]),
        (dimensions, True, [0.5, 0.5]),
        (easy, True, [0.8, 0.2]),
    ):
        settings_.balance_dimensions = balance
        share = shares(table, settings_, classes, dimensions=dimensions)
        np.testing.assert_allclose(share, expected, atol=0.03)


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
    assert not resting(table, config()).any()


@pytest.mark.parametrize("options", [4, np.full(4000, 4)])
def test_the_test_against_lucky_guesses(options):
    """After 128 completions 90 % of the samples at chance rest, and 2 % of those at .25 at most."""
    rng = np.random.default_rng(0)
    settings_ = config(rest_after_completions=128)

    def share(rate, count=128):
        table = counted(rng.binomial(count, rate, 4000), np.full(4000, count))
        return resting(table, settings_, options).mean()

    assert share(1 / 16) >= 0.9
    assert share(0.25) <= 0.02
    assert share(0.0) == 1
    assert share(0.0, count=127) == 0


def test_chance_depends_on_the_number_of_options():
    """5 of 16 is no more than chance with 2 options, and more than chance with 8."""
    table = counted([5, 5], [16, 16])
    rests = resting(table, config(rest_after_completions=16), np.array([2, 8]))
    np.testing.assert_array_equal(rests, [True, False])


def test_resting_samples_stay_away_while_others_are_left():
    """Also where the plan has more places than there are other samples."""
    table = table_of(np.r_[np.zeros(10), np.ones(10)], np.r_[np.zeros(10), np.full(10, 5)])
    counts = count_visits(table, config(0.1, 0.5, 64, rest_after_completions=1))
    assert not counts[:10].any()
    assert (np.abs(counts[10:] - 6.4) < 2).all()


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
    seen = set()
    for r in range(int(np.ceil(n / np.ceil(length * quota)))):
        plan = make_plan(seed, r, table, settings_)
        seen |= set(plan)
        exact = rng.integers(0, 2, length).astype(float)
        table = update_table(table, plan, exact, 10 + r, settings_)
    assert seen == set(range(n))


def test_the_quota_goes_to_the_least_recently_seen_of_those_not_drawn():
    table = table_of(np.r_[np.zeros(10), np.ones(90)], np.r_[np.zeros(10), np.arange(1, 91)])
    counts = count_visits(table, config(0.0, 0.5, 20))
    np.testing.assert_array_equal(counts, np.r_[np.ones(20), np.zeros(80)])
    counts = count_visits(table, config(0.0, 0.95, 200))  # 10 visits are due, 190 are of the quota
    np.testing.assert_array_equal(counts[10:], 2)
    np.testing.assert_array_equal(counts[:10], 2)


def test_within_a_class_every_sample_is_as_likely():
    counts = np.zeros(50)
    for r in range(1000):
        counts[make_plan(3, r, table_of(np.full(50, 0.5)), config(0.1, 0.2, 10))] += 1
    chi_square = ((counts - 200) ** 2 / (200 * 0.8)).sum()
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)


def test_neighbours_in_the_table_are_drawn_together_as_often_as_others():
    together = np.zeros((30, 30))
    for r in range(2000):
        drawn = count_visits(table_of(np.full(30, 0.5)), config(0.1, 0.0, 10), round_index=r)
        together += np.outer(drawn, drawn)
    expected = 2000 * (10 / 30) * (9 / 29)
    near = np.diagonal(together, 1)
    assert abs(near.mean() - expected) < 5 * np.sqrt(expected / 29)


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
    """With 3,200 visits, in 256 MB."""
    size = 1_000_000
    rng = np.random.default_rng(0)
    count = rng.integers(0, 20, size) * 8
    seen = rng.integers(-1, 900, size).astype(np.int32)
    mixed = counted(rng.binomial(count, rng.random(size)), count)._replace(last_seen=seen)
    facts = np.arange(size) % 4, np.full(size, 4)
    fields = dict(plan_length=3200, rest_after_completions=64, balance_dimensions=True)
    for weighting in ("failure", "threshold", "variance"):
        settings_ = config(**fields, weighting=weighting)
        for table in (init_table(size), table_of(np.zeros(size)), mixed):
            start = time.process_time()
            make_plan(0, 0, table, settings_, *facts)
            assert time.process_time() - start < 1.0  # about 0.15 s on a quiet core
    tracemalloc.start()
    make_plan(0, 0, mixed, settings_, *facts)
    assert tracemalloc.get_traced_memory()[1] < 256e6
    tracemalloc.stop()


def test_update_moves_the_average():
    settings_ = config(decay=0.25)
    table = update_table(init_table(4), np.array([2, 0]), np.array([1.0, 0.25]), 5, settings_)
    np.testing.assert_array_equal(table.pass_rate, [0.25, 0.5, 1.0, 0.5])
    np.testing.assert_array_equal(table.count, [1, 0, 1, 0])
    np.testing.assert_array_equal(table.last_seen, [5, -1, 5, -1])
    np.testing.assert_array_equal(table.num_exact, [0, 0, 1, 0])
    table = update_table(table, np.array([2, 1]), np.array([0.0, 0.0]), 6, settings_, 8)
    np.testing.assert_array_equal(table.pass_rate, [0.25, 0.0, 0.25, 0.5])
    np.testing.assert_array_equal(table.count, [1, 8, 9, 0])
    table = update_table(table, np.array([2, 2]), np.array([0.25, 0.75]), 7, settings_, 8)
    np.testing.assert_array_equal(table.num_exact, [0, 0, 9, 0])
    assert table.num_exact.dtype == np.int32


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
        np.array([0.0, 1.0, 0.25, 0.5]),
        np.array([1, 2, 1, 0]),
        np.array([1, 1, 1, -1]),
        np.array([0, 2, 0, 0]),
    )
    np.testing.assert_array_equal(is_hard(table, np.arange(4), 0.5), [True, False, True, False])
    assert table_statistics(table) == {
        "hard_cases/unseen": 0.25,
        "hard_cases/pass_rate": pytest.approx(1.25 / 3),
        "hard_cases/never_solved": 0.25,
        "hard_cases/always_solved": 0.25,
    }
    assert table_statistics(init_table(3))["hard_cases/pass_rate"] == 0.0


def test_the_hardest_are_those_of_the_largest_weights():
    weights = np.array([0.1, 0.9, 0.5, 0.9, 0.1, 0.1])
    np.testing.assert_array_equal(hardest(0, 0, weights, 3), [1, 2, 3])
    chosen = {tuple(hardest(0, step, weights, 4).tolist()) for step in range(40)}
    assert chosen == {(0, 1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 5)}
