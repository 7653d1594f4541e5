"""Paired differences: planted ones are found, null ones come out at 5 %, in every design."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.rl.paired import compare_runs, holm, pair_run, paired_difference


def simulate(rng, runs, questions, *, shift=0.0, nested=False, training=0.01):
    """Differences [runs][questions] between two methods whose answers are about 40 % exact.

    Questions differ in difficulty, and the methods in which they find easy. `training` is the
    standard deviation of a run's exact match around its method's.
    """
    difficulty = rng.normal(-0.35, 1.2, (runs if nested else 1, questions))
    seed = rng.normal(0, 0.01, (runs, 1))  # of checkpoint and seed, the same for both methods
    exact = []
    for method_shift in (shift, 0.0):
        chance = stats.norm.cdf(difficulty + rng.normal(0, 0.3, difficulty.shape))
        chance = chance + seed + rng.normal(0, training, (runs, 1)) + method_shift
        exact.append((rng.random((runs, questions)) < chance).astype(float))
    return list(exact[0] - exact[1])


DESIGNS = [(10, 2400, False, 0.01), (3, 1200, True, 0.01), (1, 1200, False, 0.0)]


@pytest.mark.parametrize(("runs", "questions", "nested", "training"), DESIGNS)
def test_a_null_comes_out_at_5_percent(runs, questions, nested, training):
    rng = np.random.default_rng(0)
    results = [
        paired_difference(
            simulate(rng, runs, questions, nested=nested, training=training), not nested
        )
        for _ in range(500)
    ]
    found = [result.p_value < 0.05 for result in results]
    assert 0.02 <= np.mean(found) <= 0.09
    assert found == [not result.low <= 0 <= result.high for result in results]
    outside_90 = np.mean([not x.low_90 <= 0 <= x.high_90 for x in results])
    assert 0.05 <= outside_90 <= 0.15


@pytest.mark.parametrize(("runs", "training"), [(2, 0.01), (3, 0.0), (3, 0.02), (5, 0.01)])
def test_few_crossed_runs_are_no_reason_to_find_too_much(runs, training):
    rng = np.random.default_rng(1)
    pairs = [simulate(rng, runs, 600, training=training) for _ in range(500)]
    assert np.mean([paired_difference(pair, True).p_value < 0.05 for pair in pairs]) <= 0.09


def test_a_planted_difference_of_3_points_is_found():
    rng = np.random.default_rng(2)
    pairs = [simulate(rng, 10, 2400, shift=0.03) for _ in range(100)]
    results = [paired_difference(pair, True) for pair in pairs]
    assert np.mean([result.low > 0 for result in results]) > 0.95
    assert np.mean([result.low <= 0.03 <= result.high for result in results]) >= 0.9
    assert np.mean([result.value for result in results]) == pytest.approx(0.03, abs=0.002)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(3)
    difficulty = rng.random(2000)
    ours, theirs = (np.stack([(x < difficulty).astype(float)]) for x in (0.5, 0.52))
    paired = paired_difference(list(theirs - ours), True)
    unpaired = 1.96 * np.sqrt(2 * ours.var() / 2000)
    assert paired.high - paired.low < 0.5 * 2 * unpaired


def test_one_run_is_the_paired_t_test():
    differences = np.random.default_rng(4).integers(-1, 2, 50).astype(float)
    result, expected = paired_difference([differences], True), stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval()
    np.testing.assert_allclose(
        [result.p_value, result.low, result.high], [expected.pvalue, interval.low, interval.high]
    )


def test_nested_runs_are_the_t_test_over_runs():
    runs = [np.random.default_rng(i).normal(i, 1, 30 + i) for i in range(3)]
    result = paired_difference(runs, False)
    interval = stats.ttest_1samp([x.mean() for x in runs], 0).confidence_interval()
    np.testing.assert_allclose([result.low, result.high], [interval.low, interval.high])
    agreeing = [np.repeat([0.0, 1.0], 4)] * 3  # means equal by luck leave the noise within runs
    result = paired_difference(agreeing, False)
    assert (result.low, result.high) == pytest.approx((0.28, 0.72), abs=0.01)


def test_signs_scale_and_order_of_runs():
    runs = simulate(np.random.default_rng(5), 4, 300)
    result, swapped = (paired_difference(x, True) for x in (runs, [-x for x in runs]))
    assert (swapped.value, swapped.low, swapped.p_value) == (
        -result.value,
        -result.high,
        result.p_value,
    )
    np.testing.assert_allclose(paired_difference(runs[::-1], True), result)
    assert result.low < result.low_90 < result.value < result.high_90 < result.high


@pytest.mark.parametrize("same_questions", [True, False])
def test_small_cases_have_an_answer(same_questions):
    one = paired_difference([np.ones(1)], same_questions)
    assert (one.value, one.low, one.high, one.p_value) == (1, -np.inf, np.inf, 1)
    equal = paired_difference([np.zeros(5)] * 3, same_questions)
    assert equal == (0, 0, 0, 0, 0, 1)


def test_it_is_fast():
    runs = simulate(np.random.default_rng(6), 10, 2400)
    started = time.perf_counter()
    paired_difference(runs, True)
    assert time.perf_counter() - started < 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_adjusts_upwards_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == min(1, len(p_values) * min(p_values))
    ranks = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[ranks]) >= 0).all()


def test_holm_of_a_known_case():
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])


# --- Pairing of predictions ---


def rows(first_id=0, predicted=("A",), answer=("A",)):
    """Rows of predictions.jsonl: two questions of each dimension."""
    return [
        {
            "id": f"{first_id + i:03d}",
            "dimension": DIMENSIONS[i % 4],
            "predicted": None if predicted is None else list(predicted),
            "answer": list(answer),
        }
        for i in range(8)
    ]


def test_rows_are_paired_by_question_in_any_order():
    theirs = rows()
    theirs[5]["predicted"] = None
    theirs[6]["predicted"] = ["B"]
    run = pair_run(rows()[::-1], theirs)
    assert [name for name, _, _ in run.questions] == [f"{i:03d}" for i in range(8)]
    np.testing.assert_array_equal(run.differences, [0, 0, 0, 0, 0, 1, 1, 0])
    result = compare_runs([run])
    assert set(result) == {"overall", *DIMENSIONS}
    assert result["overall"].value == 1 / 4
    assert result[DIMENSIONS[1]].value == 1 / 2


def test_other_questions_have_no_pair():
    other = rows()
    other[2]["answer"] = ["A", "B"]
    for theirs in (other, rows(first_id=1), rows()[:-1]):
        with pytest.raises(ValueError, match=r"question 00\d \(.*\) has no pair"):
            pair_run(rows(), theirs)


def test_the_design_follows_the_questions():
    """Crossed runs share the questions' noise, so they are wider than nested ones."""
    rng = np.random.default_rng(7)
    hard = rng.random(8) < 0.5

    def run(first_id):
        ours = rows(first_id)
        for row, fails in zip(ours, hard, strict=True):
            row["predicted"] = None if fails else row["answer"]
        return pair_run(ours, rows(first_id, None))

    crossed = compare_runs([run(0) for _ in range(4)])["overall"]
    nested = compare_runs([run(10 * i) for i in range(4)])["overall"]
    assert crossed.value == nested.value == 1 - hard.mean()
    assert crossed.high - crossed.low > 1.5 * (nested.high - nested.low)
    with pytest.raises(ValueError, match="same questions"):
        compare_runs([run(0), run(0), run(10)])
