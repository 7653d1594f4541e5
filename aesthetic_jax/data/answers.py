"""Answers as sets of letters, as text ("A,C" or "None") and as bit masks."""

from collections.abc import Iterable
from typing import Any

LETTERS = "ABCDEFGH"  # one for each candidate; at most eight


def option_letters(num_options: int) -> str:
    """The letters of a sample's candidates: "ABCD" for 4."""
    return LETTERS[:num_options]


def format_answer(answer: Iterable[str]) -> str:
    """The text inside the answer tags: sorted letters and commas ("A,C"), or "None"."""
    return ",".join(sorted(answer)) or "None"


def answer_mask(answer: Iterable[str]) -> int:
    """An answer as an integer whose bit i is set where option i passes, option A being bit 0."""
    return sum(1 << LETTERS.index(letter) for letter in set(answer))


def mask_letters(mask: int) -> frozenset[str]:
    """The letters of a mask; the inverse of `answer_mask`."""
    return frozenset(letter for i, letter in enumerate(LETTERS) if option_passes(mask, i))


def option_passes(mask: Any, option: Any) -> Any:
    """Whether option number `option` (A is 0) passes, for integers or elementwise for arrays."""
    return (mask >> option & 1) != 0
