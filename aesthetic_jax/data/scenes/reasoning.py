"""Chains of thought, written from the facts of rendered scenes.

A thorough chain describes every image in all dimensions, in the same words and order, so that every
sample teaches all kinds of perception. A short chain describes only the dimension asked about. Each
candidate's description ends with the verdict.
"""

from collections.abc import Sequence

import numpy as np

from aesthetic_jax.data.answers import LETTERS
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.scenes.facts import SIDES, RenderedImage
from aesthetic_jax.data.scenes.flaws import BREAKS, PARTS, Flaw

# A chain uses one of three styles (the index into the tuples below) and one pair of verdicts.
STYLES = 3
_VERDICTS = (("fine", "wrong"), ("good", "bad"), ("passes", "fails"))  # (passes, fails)
_ASKED = {
    "appearance_deformation": "appearance",
    "physical_shadow": "shadow",
    "placement_layout": "placement",
    "extension_rationality": "extension",
}
_OPPOSITE = {"left": "right", "right": "left"}

FAULTS = {
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
WIDER = ("too wide", "stretched wide", "too broad")
NARROWER = ("too narrow", "squeezed narrow", "too thin")
SHADOWS = ("{length}shadow {side}", "shadow {length}{side}", "{length}shadow to {side}")
SAME_SHAPE = ("same shape", "shape kept", "shape as before")
STANDS = ("stands firmly", "stands on table", "upright on table")
WHOLE = ("whole", "complete", "nothing added")
NOT_WHOLE = ("not whole", "incomplete", "a part is lost")


def _fault(style: int, flaw: Flaw) -> str:
    return FAULTS[flaw.name][style].format(side=SIDES[flaw.side])


def _appearance(style: int, image: RenderedImage, flaw: Flaw | None) -> list[str]:
    """Colours, cap and shape; for a user's cut-out, whose colours have no names, what changed."""
    name, colour = (flaw.name, flaw.colour) if flaw else ("", "")
    if image.body is not None:
        facts = [f"{image.body} {image.kind}", f"{image.label} label", f"{image.cap} cap"]
    else:
        facts = [
            f"{colour} {image.kind}" if name == "other_colour" else image.kind,
            f"{colour} label" if name == "other_label" else "same label",
            "cap on",
        ]
    if flaw and name == "cap_missing":
        facts[2] = _fault(style, flaw)
    if flaw and name == "stretched":
        shape = (WIDER if flaw.side > 0 else NARROWER)[style]
    else:
        shape = _fault(style, flaw) if flaw and name == "bent" else SAME_SHAPE[style]
    return [*facts, shape]


def _shadow(style: int, image: RenderedImage, flaw: Flaw | None) -> list[str]:
    """Where the light is and where the shadow falls."""
    light = f"light {image.light}"
    if flaw and flaw.name in FAULTS:
        return [light, _fault(style, flaw)]
    side, length = _OPPOSITE[image.light], ""
    if flaw and flaw.name == "wrong_side":
        side = image.light
    elif flaw:  # wrong_length
        length = "too long " if flaw.side > 0 else "too short "
    return [light, SHADOWS[style].format(length=length, side=side)]


def _extension(style: int, flaw: Flaw | None) -> str:
    """Whether the product is whole, with nothing grown on."""
    if flaw is None or "extension_rationality" not in BREAKS[flaw.name]:
        return WHOLE[style]
    return NOT_WHOLE[style] if flaw.name == "cap_missing" else _fault(style, flaw)


def _facts(style: int, image: RenderedImage) -> dict[str, list[str]]:
    """What one image shows in each dimension."""
    flaw_of = {
        part: next((flaw for flaw in image.flaws if flaw.name in names), None)
        for part, names in PARTS.items()
    }
    product, placement = flaw_of["product"], flaw_of["placement"]
    return {
        "appearance_deformation": _appearance(style, image, product),
        "physical_shadow": _shadow(style, image, flaw_of["shadow"]),
        "placement_layout": [_fault(style, placement) if placement else STANDS[style]],
        "extension_rationality": [_extension(style, product)],
    }


def _dimensions(asked: str, thorough: bool) -> Sequence[str]:
    """The dimensions that a chain describes, in their order."""
    if thorough:
        return DIMENSIONS
    # Every flaw of extension also breaks appearance, so a chain about appearance must state it.
    is_appearance = asked == "appearance_deformation"
    return (asked, "extension_rationality") if is_appearance else (asked,)


def write_reasoning(
    rng: np.random.Generator, asked: str, images: Sequence[RenderedImage], thorough: bool = True
) -> str:
    """Writes the chain of thought of one sample.

    Args:
        rng: draws the style.
        asked: the dimension asked about.
        images: the facts of its images, the original first.
        thorough: describe every image in all dimensions. The verdicts still follow the dimension
            asked about.
    """
    style, verdicts = _draw_words(rng)
    described = _dimensions(asked, thorough)
    sentences = []
    for name, image in zip(("Original", *LETTERS), images, strict=False):
        by_dimension = _facts(style, image)
        facts = [fact for dimension in described for fact in by_dimension[dimension]]
        if name != "Original":
            facts.append(_verdict(verdicts, asked, image))
        elif "appearance_deformation" in described:
            facts.remove(SAME_SHAPE[style])  # the candidates are compared with the original
        else:
            continue  # the candidates are judged without the original
        sentences.append(f"{name}: {', '.join(facts)}.")
    return " ".join(sentences)


def write_description(rng: np.random.Generator, asked: str, image: RenderedImage) -> str:
    """Describes a single image in all dimensions, with the verdict on the one asked about.

    Args:
        rng: draws the style.
        asked: the dimension asked about.
        image: the image's facts.
    """
    style, verdicts = _draw_words(rng)
    facts = [fact for facts in _facts(style, image).values() for fact in facts]
    return f"Original: {', '.join([*facts, _verdict(verdicts, asked, image)])}."


def _draw_words(rng: np.random.Generator) -> tuple[int, tuple[str, str]]:
    """A chain's style and verdicts."""
    return int(rng.integers(STYLES)), _VERDICTS[int(rng.integers(len(_VERDICTS)))]


def _verdict(verdicts: tuple[str, str], asked: str, image: RenderedImage) -> str:
    """What was asked, and whether the image passes."""
    fails = any(asked in BREAKS[flaw.name] for flaw in image.flaws)
    return f"{_ASKED[asked]}: {verdicts[fails]}"
