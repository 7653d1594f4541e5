import numpy as np
import pytest

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.rl.metrics import METRICS, format_seeds, format_table, summarize


def questions(n=400, seed=0):
    rng = np.random.default_rng(seed)
    gold = [frozenset(np.array(list("ABCD"))[rng.random(4) < 0.5]) for _ in range(n)]
    return [DIMENSIONS[i % 4] for i in range(n)], gold, [4] * n


def test_values_of_a_small_case():
    predicted = [frozenset("A"), None, frozenset("AB"), frozenset()]
    gold = [frozenset("A"), frozenset("B"), frozenset("AC"), frozenset("D")]
    result = summarize([DIMENSIONS[0]] * 3 + [DIMENSIONS[1]], predicted, gold, [4] * 4)
    values = {name: entry["value"] for name, entry in result["overall"].items()}
    expected = {
        "exact": 1 / 4,
        "dpa": 1 / 4,
        "jaccard": (1 + 1 / 3) / 4,
        "per_option": (1 + 0 + 1 / 2 + 3 / 4) / 4,
        "answered": 3 / 4,
        "letters_named_less_right": (0 + 0 - 1) / 3,
    }
    assert values == pytest.approx(expected)
    assert list(result["dimensions"]) == list(DIMENSIONS[:2])
    assert result["dimensions"][DIMENSIONS[0]]["exact"]["value"] == pytest.approx(1 / 3)
    assert result["num_samples"] == 4


def test_chance_rows_are_what_guessing_scores():
    dimensions, gold, options = questions()
    result = summarize(dimensions, [frozenset()] * len(gold), gold, options)
    assert result["chance"]["uniform"]["exact"]["value"] == pytest.approx(1 / 16)
    assert result["chance"]["uniform"]["per_option"]["value"] == pytest.approx(1 / 2)
    constant = result["chance"]["best_constant"]
    counts = {answer: gold.count(answer) for answer in set(gold)}
    assert constant["exact"]["value"] == pytest.approx(max(counts.values()) / len(gold))
    assert counts[frozenset(constant["answer"])] == max(counts.values())
    assert constant["answer"] == sorted(constant["answer"])


def test_interval_covers_the_binomial_one():
    dimensions, gold, options = questions()
    rng = np.random.default_rng(1)
    predicted = [x if rng.random() < 0.5 else x ^ {"A"} for x in gold]
    entry = summarize(dimensions, predicted, gold, options)["overall"]["exact"]
    half_width = 1.96 * np.sqrt(entry["value"] * (1 - entry["value"]) / len(gold))
    assert entry["high"] - entry["low"] == pytest.approx(2 * half_width, rel=0.15)
    assert entry["low"] < entry["value"] < entry["high"]


def test_table_names_everything_and_fits():
    dimensions, gold, options = questions()
    methods = {
        "sft": summarize(dimensions, gold, gold, options),
        "grpo": summarize(dimensions, [None] * 400, gold, options),
    }
    table = format_table(methods)
    assert "100.0 [100, 100]" in table
    for word in (
        "sft",
        "grpo",
        "appearance",
        "physical",
        "placement",
        "extension",
        "overall",
        "uniform",
        "non_empty",
    ):
        assert word in table
    assert max(map(len, table.splitlines())) <= 120
    assert set(METRICS) == set(methods["sft"]["overall"])


def test_the_hard_quarter_is_a_column_where_it_is_known():
    dimensions, gold, options = questions()
    seeds = {"start": [summarize(dimensions, gold, gold, options)]}
    with_column = format_seeds(seeds, {"start": [0.25]}).splitlines()
    without = format_seeds(seeds, {}).splitlines()
    assert "hard quarter" in with_column[0]
    assert "25.0 [25, 25]" in with_column[1]
    assert "hard quarter" not in without[0]
    assert len(without[0]) == len(without[1])


def letters(predicted, gold):
    result = summarize([DIMENSIONS[0]] * len(gold), predicted, gold, [4] * len(gold))
    return result["overall"]["letters_named_less_right"], result


def test_naming_only_the_surest_letter_shows_as_fewer_letters():
    _, gold, _ = questions()
    gold = [x for x in gold if len(x) >= 2]
    entry, result = letters([frozenset(sorted(x)[:1]) for x in gold], gold)
    assert entry["value"] == pytest.approx(1 - np.mean([len(x) for x in gold]))
    assert entry["low"] < entry["value"] < entry["high"] < 0
    chance = result["chance"]["uniform"]["letters_named_less_right"]
    assert chance["value"] == pytest.approx(2 - np.mean([len(x) for x in gold]))


def test_unanswered_questions_name_no_letters_and_count_nowhere():
    _, gold, _ = questions(40)
    entry, _ = letters([None] * 39 + [gold[-1] | {"A"}], gold)
    assert entry["value"] == entry["low"] == entry["high"] == len({"A"} - gold[-1])
    entry, result = letters([None] * 40, gold)
    assert entry == {"value": None, "low": None, "high": None}
    assert "letters named less letters right" in format_table({"sft": result})
