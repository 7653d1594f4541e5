"""Chains of thought, written from the facts of rendered scenes.

For each candidate a chain states what is visible in the dimension asked about, then the verdict. A
thorough chain describes every image in all dimensions, in the same words and order, so that every
sample teaches all kinds of perception.
"""

import numpy as np

from aesthetic_jax.data.answers import LETTERS
from aesthetic_jax.data.scenes.flaws import FLAWS, Flaw
from aesthetic_jax.data.scenes.products import Product
from aesthetic_jax.data.scenes.render import Scene

# A chain uses one of three styles (the index into the tuples below) and one pair of verdicts.
_VERDICTS = (("fine", "wrong"), ("good", "bad"), ("passes", "fails"))  # (passes, fails)
_SIDES = {-1: "left", 1: "right"}
_DIMENSION_OF = {flaw: dimension for dimension, flaws in FLAWS.items() for flaw in flaws}

_FAULTS = {
    "bent": ("bent over", "crooked", "bent sideways"),
    "cap_missing": ("no cap", "cap missing", "cap gone"),
    "missing": ("no shadow", "shadow missing", "without shadow"),
    "doubled": ("two shadows", "double shadow", "a second shadow"),
    "floating": ("floating", "hovers in the air", "floats above table"),
    "sunk": ("sunk into table", "sinks into table", "half in the table"),
    "over_edge": ("over the edge", "hangs over edge", "past the edge"),
    "leaning": ("leaning {side}", "tilted {side}", "tips {side}"),
    "second_cap": ("second cap {side}", "extra cap {side}", "another cap {side}"),
    "growth": ("growth {side}", "bulge grows {side}", "extra part {side}"),
    "label_spill": ("label spills {side}", "label leaves body {side}", "label runs off {side}"),
    "cut_off": ("cut off {side}", "ends in nothing {side}", "side gone {side}"),
}
_WIDER = ("too wide", "stretched wide", "too broad")
_NARROWER = ("too narrow", "squeezed narrow", "too thin")
_SHADOWS = ("{length}shadow {side}", "shadow {length}{side}", "{length}shadow to {side}")
_SAME_SHAPE = ("same shape", "shape kept", "shape as before")
_STANDS = ("stands firmly", "stands on table", "upright on table")
_WHOLE = ("whole", "complete", "nothing added")


def _appearance(style: int, product: Product, flaw: Flaw | None) -> list[str]:
    """Colours and cap; for a user's cut-out, whose colours have no names, what has changed."""
    name, new_colour = (flaw.name, flaw.colour) if flaw else ("", "")
    if product.colour is not None:
        body = new_colour if name == "other_colour" else product.colour
        label = new_colour if name == "other_label" else product.label
        facts = [f"{body} {product.name}", f"{label} label", f"{product.cap} cap"]
    else:
        facts = [
            f"{new_colour} {product.name}" if name == "other_colour" else product.name,
            f"{new_colour} label" if name == "other_label" else "same label",
            "cap on",
        ]
    if name == "cap_missing":
        facts[2] = _FAULTS[name][style]
    return facts


def _shape(style: int, flaw: Flaw | None) -> str:
    """Whether the product keeps its shape."""
    if flaw and flaw.name == "stretched":
        return (_WIDER if flaw.side > 0 else _NARROWER)[style]
    return _FAULTS["bent"][style] if flaw and flaw.name == "bent" else _SAME_SHAPE[style]


def _shadow(style: int, scene: Scene, flaw: Flaw | None) -> list[str]:
    """Where the light is and where the shadow falls."""
    light = f"light {_SIDES[scene.light]}"
    if flaw and flaw.name in _FAULTS:
        return [light, _FAULTS[flaw.name][style]]
    side, length = -scene.light, ""
    if flaw and flaw.name == "wrong_side":
        side = scene.light
    elif flaw:  # wrong_length
        length = "too long " if flaw.side > 0 else "too short "
    return [light, _SHADOWS[style].format(length=length, side=_SIDES[side])]


def _fault(style: int, flaw: Flaw | None, sound: tuple[str, ...]) -> str:
    """The flaw in words, or a statement that there is none."""
    return _FAULTS[flaw.name][style].format(side=_SIDES[flaw.side]) if flaw else sound[style]


def _facts(
    dimension: str, style: int, product: Product, scene: Scene, flaw: Flaw | None
) -> list[str]:
    """What one image shows of one dimension, with or without a flaw of that dimension."""
    if dimension == "appearance_deformation":
        return [*_appearance(style, product, flaw), _shape(style, flaw)]
    if dimension == "physical_shadow":
        return _shadow(style, scene, flaw)
    return [_fault(style, flaw, _STANDS if dimension == "placement_layout" else _WHOLE)]


def write_reasoning(
    rng: np.random.Generator,
    asked: str,
    product: Product,
    scenes: list[Scene],
    flaws: list[tuple[Flaw, ...]],
    thorough: bool = False,
) -> str:
    """Writes the chain of thought of one sample.

    Args:
        rng: draws the style.
        asked: the dimension asked about.
        product: the product in all images.
        scenes: each image's scene, the original first.
        flaws: each image's flaws, at most one per dimension.
        thorough: describe every image in all dimensions. The verdicts still follow the dimension
            asked about.
    """
    style = int(rng.integers(3))
    verdicts = _VERDICTS[int(rng.integers(len(_VERDICTS)))]
    described = tuple(FLAWS) if thorough else (asked,)
    sentences = []
    for name, scene, present in zip(("Original", *LETTERS), scenes, flaws, strict=False):
        flaw_of = {_DIMENSION_OF[flaw.name]: flaw for flaw in present}
        facts = []
        for dimension in described:
            facts += _facts(dimension, style, product, scene, flaw_of.get(dimension))
        if name != "Original":
            facts.append(verdicts[asked in flaw_of])
        elif "appearance_deformation" in described:
            facts.remove(_SAME_SHAPE[style])  # the candidates are compared with the original
        else:
            continue  # the candidates are judged without the original
        sentences.append(f"{name}: {', '.join(facts)}.")
    return " ".join(sentences)
