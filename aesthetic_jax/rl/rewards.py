"""Rewards of completions: strict answer parsing, partial credit (DPA), format, their total.

The paper does not publish its DPA formula. The variants below are interpretations, which differ in
the cost of a wrong extra letter.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from aesthetic_jax.data.answers import mask_letters, option_letters

VARIANTS = ("subset", "jaccard", "f1", "per_option", "exact")

_END_OF_TURN = re.compile(r"<\|im_end\|>|<\|endoftext\|>")
_SPACE = " \t\r\n"
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>[ \t\r\n]*\Z", re.DOTALL)
_THOUGHT = re.compile(r"[ \t\r\n]*<think>((?:(?!</?think>).)*)</think>[ \t\r\n]*\Z", re.DOTALL)
_SEPARATOR = re.compile(r"[ \t\r\n]*,[ \t\r\n]*|[ \t\r\n]+")


class Scores(NamedTuple):
    """Rewards of a rollout and their parts, on the host."""

    reward: Float[np.ndarray, "B G"]  # the weighted total
    dpa: Float[np.ndarray, "B G"]  # partial credit, annealed and gated if configured
    format: Float[np.ndarray, "B G"]  # 1 where the completion has the exact form
    exact: Float[np.ndarray, "B G"]  # 1 where the answer set is right


def _before_end_of_turn(text: str) -> str:
    return _END_OF_TURN.split(text, maxsplit=1)[0]


def parse_answer(text: str, num_options: int = 4) -> frozenset[str] | None:
    """The letters that a completion answers with; the empty set for `None`; None for no answer.

    Tags are matched strictly: lower case, exactly one answer block, only white space after it.
    Inside, letters come in any order and case, separated by commas and/or white space, and `None`
    in any case. Anything else is no answer: a repeated letter, a letter that is no option, `AC`,
    `A or C`, full-width letters, an empty block.

    Args:
        text: the completion, with or without its end-of-turn token.
        num_options: 2 to 8 candidates, named A, B, ...
    """
    text = _before_end_of_turn(text)
    match = _ANSWER.search(text)
    if match is None or len(re.findall(r"</?answer>", text)) != 2:
        return None
    content = match.group(1).strip(_SPACE)
    if content.isascii() and content.lower() == "none":
        return frozenset()
    letters = [x.upper() if x.isascii() else x for x in _SEPARATOR.split(content)]
    options = option_letters(num_options)
    if any(len(letter) != 1 or letter not in options for letter in letters):
        return None
    return frozenset(letters) if len(set(letters)) == len(letters) else None


def format_reward(text: str, num_options: int = 4) -> float:
    """1 for exactly one thought, then exactly one answer that parses; else 0.

    White space may stand before, between and after the two.
    """
    text = _before_end_of_turn(text)
    before_answer = text.split("<answer>", 1)[0]
    has_thought = _THOUGHT.match(before_answer) is not None
    return float(has_thought and parse_answer(text, num_options) is not None)


def dpa_reward(
    predicted: frozenset[str] | None,
    gold: frozenset[str],
    num_options: int = 4,
    variant: str = "subset",
) -> float:
    """Partial credit of an answer, in [0, 1]: 0 without an answer, 1 for the right one.

    Variants, for a predicted set P, a right set G and n options:
        subset: |P & G| / |G| if P is a subset of G, else 0; 1 if both are empty. Rewards every
            right letter as long as none is wrong. A model games it by naming its surest letter.
        jaccard: |P & G| / |P | G|. Rewards overlap. Naming every letter earns |G| / n.
        f1: 2 |P & G| / (|P| + |G|). Milder than jaccard: naming every letter earns more.
        per_option: share of options judged right. Coin flips earn 1/2, so differences are small.
        exact: 1 if P = G, else 0. Can't be gamed. Gives no signal where a whole group is wrong.

    Raises:
        ValueError: no such variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no reward variant '{variant}'; choose from {', '.join(VARIANTS)}")
    if predicted is None:
        return 0.0
    if predicted == gold:
        return 1.0
    common = len(predicted & gold)
    credit = {
        "subset": common / max(1, len(gold)) if predicted <= gold else 0.0,
        "jaccard": common / len(predicted | gold),
        "f1": 2 * common / (len(predicted) + len(gold)),
        "per_option": (num_options - len(predicted ^ gold)) / num_options,
        "exact": 0.0,
    }
    return credit[variant]


def compute_rewards(
    texts: Sequence[Sequence[str]],
    answers: Int[np.ndarray, " B"],
    num_options: Int[np.ndarray, " B"],
    config: Any,
    progress: float = 0.0,
) -> Scores:
    """Rewards of a rollout: accuracy_weight * DPA + format_weight * format.

    With the gate `exact`, DPA is 0 for a whole group in which no completion is exactly right.
    Without it, partial credit alone ranks such a group, often by lucky guesses, and scaling by the
    group's standard deviation gives the group full weight. With it, only the format gives a
    gradient.

    Args:
        texts: completions [B][G].
        answers: bit masks of the right answers, as `answer_mask` makes them.
        num_options: candidates of each prompt.
        config: a config's `reward`. With `dpa_anneal`, DPA moves linearly from `variant` to exact
            match over training. `gate` is "off" or "exact".
        progress: completed share of training, in [0, 1].
    """
    partial, exact, form = np.zeros((3, len(texts), len(texts[0])), np.float32)
    anneal = progress if config.dpa_anneal else 0.0
    for b, group in enumerate(texts):
        gold, options = mask_letters(int(answers[b])), int(num_options[b])
        for g, text in enumerate(group):
            predicted = parse_answer(text, options)
            exact[b, g] = dpa_reward(predicted, gold, options, "exact")
            partial[b, g] = dpa_reward(predicted, gold, options, config.variant)
            form[b, g] = format_reward(text, options)
    dpa = (1 - anneal) * partial + anneal * exact
    if config.gate == "exact":
        dpa *= exact.any(axis=1, keepdims=True)
    total = config.accuracy_weight * dpa + config.format_weight * form
    return Scores(total, dpa, form, exact)
