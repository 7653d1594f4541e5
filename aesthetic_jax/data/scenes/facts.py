"""What each image of a rendered sample shows: the facts in the lines of scenes.jsonl.

Chains of thought are written from these facts. scenes.jsonl itself serves evaluation alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from aesthetic_jax.data.answers import option_letters
from aesthetic_jax.data.scenes.flaws import BREAKS, Flaw
from aesthetic_jax.data.scenes.products import Product

SIDES = {-1: "left", 1: "right"}


@dataclasses.dataclass(frozen=True)
class RenderedImage:
    """What one rendered image shows.

    Attributes:
        kind: noun of the product.
        body: name of the body's colour; None for a user's cut-out.
        label: name of the label's colour; None for a user's cut-out.
        cap: name of the cap's colour; None for a missing cap or a user's cut-out.
        light: side that the light comes from, "left" or "right".
        flaws: the image's flaws.
    """

    kind: str
    body: str | None
    label: str | None
    cap: str | None
    light: str
    flaws: tuple[Flaw, ...]


def rendered_image(product: Product, light: int, flaws: tuple[Flaw, ...]) -> RenderedImage:
    """What one image shows of a product.

    Args:
        product: the product without flaws.
        light: -1 from the left, 1 from the right.
        flaws: the image's flaws.
    """
    new = {flaw.name: flaw.colour for flaw in flaws}
    has_names = product.colour is not None  # colours of a user's cut-out have none
    return RenderedImage(
        kind=product.name,
        body=new.get("other_colour", product.colour) if has_names else None,
        label=new.get("other_label", product.label) if has_names else None,
        cap=None if "cap_missing" in new else product.cap,
        light=SIDES[light],
        flaws=flaws,
    )


def scene_line(name: str, images: Sequence[RenderedImage]) -> dict[str, Any]:
    """A line of scenes.jsonl.

    Args:
        name: the sample's id.
        images: the facts of its images, the original first.
    """
    letters = ("original", *option_letters(len(images) - 1))
    lines = {letter: _as_json(facts) for letter, facts in zip(letters, images, strict=True)}
    return {"id": name, "images": lines}


def _as_json(facts: RenderedImage) -> dict[str, Any]:
    flaws = [
        {"name": flaw.name, "strength": round(flaw.strength, 3), "breaks": list(BREAKS[flaw.name])}
        for flaw in facts.flaws
    ]
    return vars(facts) | {"flaws": flaws}
