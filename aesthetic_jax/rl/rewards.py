"""From a completion's text to its reward: strict parsing, partial credit (DPA), format.

The paper's DPA formula is not public. The variants below are its readings; where they differ is in what a wrong extra letter
costs.
"""

import re

LETTERS = "ABCDEFGH"
_END_OF_TURN = re.compile(r"<\|im_end\|>|<\|endoftext\|>")
_SPACE = " \t\r\n"
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>[ \t\r\n]*\Z", re.DOTALL)
_THOUGHT = re.compile(r"[ \t\r\n]*<think>((?:(?!</?think>).)*)</think>[ \t\r\n]*\Z", re.DOTALL)
_SEPARATOR = re.compile(r"[ \t\r\n]*,[ \t\r\n]*|[ \t\r\n]+")


def _cut(text: str) -> str:
    return _END_OF_TURN.split(text, maxsplit=1)[0]


def parse_answer(text: str, num_options: int = 4) -> frozenset[str] | None:
    """The letters that a completion answers with; the empty set for `None`; None where there is no valid answer.

    The tags are matched strictly: lower case, exactly one answer block, nothing but white space behind it. Inside, letters come
    in any order and case, separated by commas and/or white space. A repeated letter, one that is no option, anything else
    (`AC`, `A or C`, full-width letters, an empty block) is no answer. `None` is accepted in any case too.

    Args:
        num_options: 2 to 8 candidates, named A, B, ...
    """
    text = _cut(text)
    match = _ANSWER.search(text)
    if match is None or len(re.findall(r"</?answer>", text)) != 2:
        return None
    content = match.group(1).strip(_SPACE)
    if content.isascii() and content.lower() == "none":
        return frozenset()
    letters = [letter.upper() if letter.isascii() else letter for letter in _SEPARATOR.split(content)]
    options = LETTERS[:num_options]
    if any(len(letter) != 1 or letter not in options for letter in letters) or len(set(letters)) != len(letters):
        return None
    return frozenset(letters)


def format_answer(answer: frozenset[str]) -> str:
    """The inside of the answer block: sorted letters and commas, or None."""
    return ",".join(sorted(answer)) or "None"


def format_reward(text: str, num_options: int = 4) -> float:
    """1 for exactly one thought, then exactly one answer that parses, with white space or nothing around them; else 0."""
    text = _cut(text)
    before = text.split("<answer>", 1)[0]
    return float(parse_answer(text, num_options) is not None and _THOUGHT.match(before) is not None)


def dpa_reward(
    predicted: frozenset[str] | None, gold: frozenset[str], num_options: int = 4, variant: str = "subset"
) -> float:
    """Proportional credit of an answer, in [0, 1]; 0 where there is none, 1 where it is right.

    Variants:
        subset: |P & G| / |G| if P is a subset of G, else 0; 1 if both are empty. Rewards being right as far as one goes; a model
            may game it by naming only its surest letter.
        jaccard: |P & G| / |P | G|. Rewards overlap; naming every letter earns |G| / n.
        f1: 2 |P & G| / (|P| + |G|). As jaccard, milder: naming every letter earns even more.
        per_option: share of options judged right. Coin flips earn 1/2, so differences are small.
        exact: 1 if P = G, else 0. Can't be gamed, and teaches nothing where every answer of a group is wrong.

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
    if variant == "subset":
        return common / len(gold) if predicted <= gold else 0.0
    if variant == "jaccard":
        return common / len(predicted | gold)
    if variant == "f1":
        return 2 * common / (len(predicted) + len(gold))
    if variant == "per_option":
        return (num_options - len(predicted ^ gold)) / num_options
    return 0.0


VARIANTS = ("subset", "jaccard", "f1", "per_option", "exact")
