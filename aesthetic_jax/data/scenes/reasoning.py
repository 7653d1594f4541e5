"""Chains of thought written from a scene's facts.

The usual one says of each candidate what bears on the question and gives the verdict on it; `write_description` says of
each image what there is to see.
"""

import numpy as np

from aesthetic_jax.data.scenes.flaws import FLAWS, Flaw
from aesthetic_jax.data.scenes.products import Product
from aesthetic_jax.data.scenes.render import Scene

# (passes, fails), one pair chosen for a whole chain
_VERDICTS = (("fine", "wrong"), ("good", "bad"), ("passes", "fails"))
_SIDES = {-1: "left", 1: "right"}

_SEEN = {
    "stretched": ("too wide", "stretched wide", "too broad"),
    "bent": ("bent sideways", "crooked", "bent over"),
    "other_label": ("other label, {colour}", "label now {colour}", "label turned {colour}"),
    "other_colour": ("other colour, {colour}", "body now {colour}", "body turned {colour}"),
    "cap_missing": ("no cap", "cap missing", "cap gone"),
    "missing": ("no shadow", "shadow missing", "without shadow"),
    "doubled": ("two shadows", "double shadow", "a second shadow"),
    "floating": ("floats above table", "hovers in the air", "floating"),
    "sunk": ("sunk into table", "sinks into table", "half in the table"),
    "over_edge": ("over the edge", "hangs over edge", "past the edge"),
    "leaning": ("leaning {side}", "tilted {side}", "tips {side}"),
    "second_cap": ("second cap {side}", "extra cap {side}", "another cap {side}"),
    "growth": ("growth {side}", "bulge grows {side}", "extra part {side}"),
    "label_spill": ("label spills {side}", "label leaves body {side}", "label runs off {side}"),
    "cut_off": ("cut off {side}", "ends in nothing {side}", "side gone {side}"),
}
_SOUND = {
    "appearance_deformation": ("same as before", "unchanged", "as original"),
    "placement_layout": ("stands on table", "stands firmly", "upright on table"),
    "extension_rationality": ("complete", "nothing added", "whole"),
}


def _shadow(style: int, scene: Scene, flaw: Flaw | None) -> str:
    """Light and shadow of one candidate, told apart by where they are."""
    away = -scene.light
    if flaw is None or flaw.name in ("wrong_side", "wrong_length"):
        side = _SIDES[-away if flaw and flaw.name == "wrong_side" else away]
        length = ""
        if flaw and flaw.name == "wrong_length":
            length = "too long " if flaw.side > 0 else "too short "
        seen = (f"shadow {length}{side}", f"{length}shadow {side}", f"{length}shadow to {side}")[style]
    else:
        seen = _SEEN[flaw.name][style]
    return f"light {_SIDES[scene.light]}, {seen}"


def _fault(style: int, flaw: Flaw) -> str:
    """What is seen of a flaw that is none of the shadow's."""
    if flaw.name == "stretched" and flaw.side < 0:
        return ("too narrow", "squeezed narrow", "too thin")[style]
    return _SEEN[flaw.name][style].format(colour=flaw.colour, side=_SIDES[flaw.side])


def write_reasoning(
    rng: np.random.Generator,
    dimension: str,
    product: Product,
    scenes: list[Scene],
    flaws: list[Flaw | None],
) -> str:
    """The chain of thought of one sample.

    Args:
        scenes: of each candidate.
        flaws: of each candidate in the dimension asked about; None: it passes.
    """
    style = int(rng.integers(3))
    verdicts = _VERDICTS[int(rng.integers(len(_VERDICTS)))]
    parts = []
    if dimension == "appearance_deformation" and product.colour is not None:
        parts.append(f"Original: {product.colour} {product.name}, {product.label} label, {product.cap} cap.")
    for letter, scene, flaw in zip("ABCDEFGH", scenes, flaws, strict=False):
        if dimension == "physical_shadow":
            seen = _shadow(style, scene, flaw)
        elif flaw is None:
            seen = _SOUND[dimension][style]
        else:
            seen = _fault(style, flaw)
        parts.append(f"{letter}: {seen}, {verdicts[flaw is not None]}.")
    return " ".join(parts)


def write_description(
    rng: np.random.Generator, product: Product, scenes: list[Scene], flaws: list[tuple[Flaw, ...]]
) -> str:
    """A thorough chain of thought: product, light, shadow and every flaw of each image.

    Args:
        scenes: of each image, the original first.
        flaws: of each image, of any dimension.
    """
    style = int(rng.integers(3))
    parts = []
    for name, scene, present in zip(("Original", *"ABCDEFGH"), scenes, flaws, strict=False):
        by_name = {flaw.name: flaw for flaw in present}
        seen = [product.name]
        if product.colour is not None:
            body = by_name["other_colour"].colour if "other_colour" in by_name else product.colour
            label = by_name["other_label"].colour if "other_label" in by_name else product.label
            seen = [f"{body} {product.name}", f"{label} label"]
            if "cap_missing" not in by_name:
                seen.append(f"{product.cap} cap")
        shadow = next((flaw for flaw in present if flaw.name in FLAWS["physical_shadow"]), None)
        seen.append(_shadow(style, scene, shadow))
        told = ("other_colour", "other_label", *FLAWS["physical_shadow"])
        seen += [_fault(style, flaw) for flaw in present if flaw.name not in told]
        parts.append(f"{name}: {', '.join(seen)}.")
    return " ".join(parts)
