"""Chains of thought written from a scene's facts.

Of each candidate a chain says what there is to see of what was asked, then the verdict. A thorough one says of each image all
there is to see, in the same words and always in the same order, so that every sample teaches perception of all kinds.
"""

import numpy as np

from aesthetic_jax.data.scenes.flaws import FLAWS, Flaw
from aesthetic_jax.data.scenes.products import Product
from aesthetic_jax.data.scenes.render import Scene

# One style of three, and one pair of verdicts, is chosen for a whole chain.
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
    """Colours and cap; of a user's cut-out, whose colours have no names, what has become of them."""
    name = flaw.name if flaw else ""
    if product.colour is not None:
        body = flaw.colour if name == "other_colour" else product.colour
        label = flaw.colour if name == "other_label" else product.label
        facts = [f"{body} {product.name}", f"{label} label", f"{product.cap} cap"]
    else:
        facts = [
            f"{flaw.colour} {product.name}" if name == "other_colour" else product.name,
            f"{flaw.colour} label" if name == "other_label" else "same label",
            "cap on",
        ]
    if name == "cap_missing":
        facts[2] = _FAULTS[name][style]
    return facts


def _shape(style: int, flaw: Flaw | None) -> str:
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
    return _FAULTS[flaw.name][style].format(side=_SIDES[flaw.side]) if flaw else sound[style]


def _facts(dimension: str, style: int, product: Product, scene: Scene, flaw: Flaw | None) -> list[str]:
    """What there is to see of one dimension in one image, with its flaw or without."""
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
    """The chain of thought of one sample.

    Args:
        asked: the dimension asked about.
        scenes: of each image, the original first.
        flaws: of each image, of any dimension, at most one of each.
        thorough: tell the facts of all dimensions; the verdicts are on the one asked about all the same.
    """
    style = int(rng.integers(3))
    verdicts = _VERDICTS[int(rng.integers(len(_VERDICTS)))]
    told = tuple(FLAWS) if thorough else (asked,)
    parts = []
    for name, scene, present in zip(("Original", *"ABCDEFGH"), scenes, flaws, strict=False):
        flaw_of = {_DIMENSION_OF[flaw.name]: flaw for flaw in present}
        facts = [fact for x in told for fact in _facts(x, style, product, scene, flaw_of.get(x))]
        if name != "Original":
            facts.append(verdicts[asked in flaw_of])
        elif "appearance_deformation" in told:
            facts.remove(_SAME_SHAPE[style])  # the others are compared with it
        else:
            continue  # the candidates need no comparison
        parts.append(f"{name}: {', '.join(facts)}.")
    return " ".join(parts)
