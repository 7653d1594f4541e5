"""Chains of thought written from a scene's facts: what is seen of each candidate, then the verdict on it."""

import numpy as np

from aesthetic_jax.data.scenes.flaws import Flaw
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
    "appearance_deformation": ("same {name}", "unchanged", "as original"),
    "placement_layout": ("stands on table", "stands firmly", "upright on table"),
    "extension_rationality": ("complete", "nothing added", "whole {name}"),
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
            seen = _SOUND[dimension][style].format(name=product.name)
        elif flaw.name == "stretched" and flaw.side < 0:
            seen = ("too narrow", "squeezed narrow", "too thin")[style]
        else:
            seen = _SEEN[flaw.name][style].format(colour=flaw.colour, side=_SIDES[flaw.side])
        parts.append(f"{letter}: {seen}, {verdicts[flaw is not None]}.")
    return " ".join(parts)
