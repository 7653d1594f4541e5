"""Reads chains of thought: the inverse of `write_reasoning`, for evaluation.

A model may write anything. Phrases that `write_reasoning` doesn't use are skipped.
"""

import itertools
import re
from collections.abc import Iterator

from aesthetic_jax.data.answers import LETTERS
from aesthetic_jax.data.scenes.facts import SIDES
from aesthetic_jax.data.scenes.facts_file import ImageFacts
from aesthetic_jax.data.scenes.products import COLOURS, KINDS
from aesthetic_jax.data.scenes.reasoning import FAULTS, NARROWER, SHADOWS, WIDER

_CUTOUT = "product"  # the noun for a user's cut-out
_HEAD = re.compile(rf"(?<!\w)(Original|[{LETTERS}]):")
_LENGTHS = ("too long ", "too short ")  # of a shadow
# Stated values by field of ImageFacts, plus "shadow": the side that the shadow falls to. None: the
# field is stated without the name of a colour.
_Values = dict[str, str | None]


def read_chain(text: str) -> dict[str, ImageFacts]:
    """The facts that a completion's chain of thought states, by image.

    Three flaws have no words of their own. "other_colour" and "other_label" are stated where the
    body's or label's colour differs from what the chain says of the original; "wrong_side" where
    the shadow falls to the side that the chain says the light comes from.

    If a chain describes an image twice, or states a fact about it twice, the first one counts. All
    flaws of a description count.

    Args:
        text: any string. Its thought stands between "<think>" and "</think>". Without a tag, it
            reaches to that end of the text.

    Returns:
        {"original" or letter: facts} for each image that the chain names; what it doesn't state is
        None.
    """
    stated: dict[str, tuple[_Values, set[str]]] = {}
    for name, description in _descriptions(text):
        stated.setdefault(name, _read_description(description))
    original = stated.get("original", ({}, set()))[0]
    return {name: _facts(original, *found) for name, found in stated.items()}


def _descriptions(text: str) -> Iterator[tuple[str, str]]:
    """Each image's name and what follows it, in the text's order."""
    _, opened, thought = text.partition("<think>")
    thought = (thought if opened else text).partition("</think>")[0]
    _, *parts = _HEAD.split(thought)
    for name, description in zip(parts[::2], parts[1::2], strict=True):
        yield name.lower() if name == "Original" else name, description


def _read_description(description: str) -> tuple[_Values, set[str]]:
    """The values and the flaws that one image's description states."""
    values: _Values = {}
    flaws = set()
    for piece in re.split("[,.]", description):
        phrase = " ".join(piece.split())
        values = _VALUES.get(phrase, {}) | values
        if phrase in _FLAWS:
            flaws.add(_FLAWS[phrase])
    return values, flaws


def _facts(original: _Values, values: _Values, flaws: set[str]) -> ImageFacts:
    """Adds the flaws that show only by comparison."""
    compared = set()
    for field, flaw in (("body", "other_colour"), ("label", "other_label")):
        colour = values.get(field)
        if colour is not None and field in original and colour != original[field]:
            compared.add(flaw)
    if "light" in values and values.get("shadow") == values["light"]:
        compared.add("wrong_side")
    facts = {name: value for name, value in values.items() if name != "shadow"}
    return ImageFacts(**facts, flaws=frozenset(flaws | compared))


def _value_phrases() -> dict[str, _Values]:
    """Every phrase that states values, in all styles."""
    phrases: dict[str, _Values] = {"same label": {"label": None}}
    for kind in (*KINDS, _CUTOUT):
        phrases[kind] = {"kind": kind, "body": None}
        phrases |= {f"{colour} {kind}": {"kind": kind, "body": colour} for colour in COLOURS}
    for field in ("label", "cap"):
        phrases |= {f"{colour} {field}": {field: colour} for colour in COLOURS}
    for side in SIDES.values():
        phrases[f"light {side}"] = {"light": side}
        for style, length in itertools.product(SHADOWS, ("", *_LENGTHS)):
            phrases[style.format(length=length, side=side)] = {"shadow": side}
    return phrases


def _flaw_phrases() -> dict[str, str]:
    """The flaw that each phrase states, in all styles."""
    phrases: dict[str, str] = dict.fromkeys((*WIDER, *NARROWER), "stretched")
    for side in SIDES.values():
        for style, length in itertools.product(SHADOWS, _LENGTHS):
            phrases[style.format(length=length, side=side)] = "wrong_length"
        for flaw, styles in FAULTS.items():
            phrases |= {style.format(side=side): flaw for style in styles}
    return phrases


_VALUES, _FLAWS = _value_phrases(), _flaw_phrases()
