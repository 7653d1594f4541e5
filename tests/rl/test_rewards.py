from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aesthetic_jax.data.answers import format_answer
from aesthetic_jax.rl.rewards import (
    VARIANTS,
    compute_rewards,
    dpa_reward,
    format_reward,
    parse_answer,
)
from aesthetic_jax.training.config import grpo_config

answers = st.frozensets(st.sampled_from("ABCD"))
SUBSETS = [frozenset(x) for size in range(5) for x in combinations("ABCD", size)]


@pytest.mark.parametrize(
    ("inside", "letters"),
    [
        ("A,C", "AC"),
        ("c, a", "AC"),
        (" B ", "B"),
        ("A\nB\tD", "ABD"),
        ("A , B", "AB"),
        ("None", ""),
        ("none", ""),
        (" NONE\n", ""),
    ],
)
def test_answers_that_parse(inside, letters):
    assert parse_answer(f"<think>x</think><answer>{inside}</answer>") == frozenset(letters)


@pytest.mark.parametrize(
    "inside",
    [
        "",
        " ",
        "AC",
        "A;C",
        "A or C",
        "A,,C",
        ",A",
        "A,",
        "A,A",
        "a A",
        "E",
        "1",
        "\uff21",
        "\u0410",
        "A\u00a0B",
        "A.",
        "(A)",
        "nothing",
    ],
)
def test_answers_that_do_not_parse(inside):
    assert parse_answer(f"<think>x</think><answer>{inside}</answer>") is None


@pytest.mark.parametrize(
    "text",
    [
        "A,C",
        "<Answer>A</Answer>",
        "<answer>A",
        "A</answer>",
        "<answer>A</answer> and more",
        "<answer>A</answer><answer>A</answer>",
        "<answer><answer>A</answer>",
        "<answer>A</answer></answer>",
        "<answer >A</answer>",
        "<answer>A</answer>\u00a0",
        "<answer>A<|im_end|></answer>",
    ],
)
def test_tags_are_strict(text):
    assert parse_answer(text) is None


def test_only_the_given_options_count():
    assert parse_answer("<answer>H</answer>", 8) == {"H"}
    assert parse_answer("<answer>C</answer>", 2) is None


def test_end_of_turn_is_cut_off_first():
    assert parse_answer("<answer>A</answer><|im_end|>\n<answer>B</answer>") == {"A"}
    assert parse_answer("<answer>A</answer>\n<|endoftext|>junk") == {"A"}


@given(st.text(alphabet=st.characters() | st.sampled_from("ABCD,<>/ answerthink\n")))
def test_parser_takes_any_text(text):
    for whole in (text, f"<answer>{text}</answer>", f"<think>{text}</think><answer>A</answer>"):
        answer = parse_answer(whole)
        assert answer is None or answer <= set("ABCD")
        assert format_reward(whole) in (0.0, 1.0)


@given(answers)
def test_what_is_formatted_parses(answer):
    assert parse_answer(f"<answer>{format_answer(answer)}</answer>") == answer


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>A</answer>", 1),
        (" <think>a</think>\n<answer>None</answer>\n", 1),
        ("<think></think><answer>A</answer><|im_end|>", 1),
        ("<answer>A</answer>", 0),
        ("<think>a</think><think>b</think><answer>A</answer>", 0),
        ("<think>a<answer>A</answer>", 0),
        ("so <think>a</think><answer>A</answer>", 0),
        ("<think>a</think> so <answer>A</answer>", 0),
        ("<think>a</think><answer>AB</answer>", 0),
    ],
)
def test_format_reward(text, reward):
    assert format_reward(text) == reward


@pytest.mark.parametrize("variant", VARIANTS)
def test_reward_laws(variant):
    for gold in SUBSETS:
        assert dpa_reward(None, gold, 4, variant) == 0
        for predicted in SUBSETS:
            reward = dpa_reward(predicted, gold, 4, variant)
            assert 0 <= reward <= 1
            assert (reward == 1) == (predicted == gold)


@pytest.mark.parametrize(
    ("variant", "predicted", "gold", "reward"),
    [
        ("subset", "A", "AC", 1 / 2),
        ("subset", "AB", "AC", 0),
        ("subset", "", "AC", 0),
        ("subset", "A", "", 0),
        ("jaccard", "AB", "AC", 1 / 3),
        ("f1", "AB", "AC", 1 / 2),
        ("per_option", "AB", "AC", 1 / 2),
        ("exact", "A", "AC", 0),
    ],
)
def test_reward_values(variant, predicted, gold, reward):
    assert dpa_reward(frozenset(predicted), frozenset(gold), 4, variant) == pytest.approx(reward)


def test_random_non_empty_subsets_score_as_the_paper_says():
    """Percentages, as means over answer sizes 1 to 4 of a random non-empty guess."""
    expected = {"exact": 6.7, "subset": 25.0, "jaccard": 40.7, "per_option": 50.8, "f1": 52.1}
    for variant, value in expected.items():
        by_size = []
        for size in range(1, 5):
            golds = [x for x in SUBSETS if len(x) == size]
            rewards = [dpa_reward(p, g, 4, variant) for g in golds for p in SUBSETS[1:]]
            by_size.append(sum(rewards) / len(rewards))
        assert 100 * sum(by_size) / 4 == pytest.approx(value, abs=0.05)


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="subset, jaccard"):
        dpa_reward(frozenset(), frozenset(), 4, "partial")


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
def test_rewards_follow_the_variant_and_difficulty_the_exact_answer(text, reward, exact):
    config = grpo_config().reward
    config.variant = "subset"
    scores = compute_rewards([[text]], np.array([0b101]), np.array([4]), config, 0.0)
    np.testing.assert_allclose(scores.reward, [[reward]], rtol=1e-6)
    assert scores.exact == exact
    config.dpa_anneal = True  # at the end of training only the exact answer counts
    at_the_end = compute_rewards([[text]], np.array([0b101]), np.array([4]), config, 1.0)
    np.testing.assert_allclose(at_the_end.reward, 0.9 * exact + 0.1 * at_the_end.format, rtol=1e-6)


def rewards_of(gate, groups, progress=0.0, anneal=False):
    """Scores of groups of answers to questions whose right answer is A, C."""
    config = grpo_config().reward
    config.variant, config.gate, config.dpa_anneal = "subset", gate, anneal
    texts = [[f"<think>x</think><answer>{x}</answer>" for x in group] for group in groups]
    masks, options = np.full(len(groups), 0b101), np.full(len(groups), 4)
    return compute_rewards(texts, masks, options, config, progress)


@given(
    st.lists(st.lists(answers, min_size=3, max_size=3), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_the_gate_opens_where_some_completion_is_exact(groups, progress):
    texts = [[format_answer(x) for x in group] for group in groups]
    plain, gated = (rewards_of(x, texts, progress, anneal=True) for x in ("off", "exact"))
    is_open = plain.exact.any(axis=1)
    for name in plain._fields:
        ours, theirs = getattr(gated, name), getattr(plain, name)
        np.testing.assert_array_equal(ours[is_open], theirs[is_open])
    assert not gated.dpa[~is_open].any()
    np.testing.assert_array_equal(gated.exact, plain.exact)  # difficulty doesn't follow the gate
    np.testing.assert_array_equal(gated.format, plain.format)


def test_a_gated_group_of_lucky_partial_answers_gives_no_gradient():
    scores = rewards_of("exact", [["A", "B"], ["A", "A,C"]])
    np.testing.assert_allclose(scores.reward, [[0.1, 0.1], [0.55, 1.0]], rtol=1e-6)
    assert np.ptp(rewards_of("off", [["A", "B"]]).reward) > 0
