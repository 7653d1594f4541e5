"""The flaws of candidates, and the dimensions that each flaw breaks.

A flaw has a strength in (0, 1]: at 1 it is glaring, at 0.3 a careful person sees it. Flaws of the
product change its cut-out; flaws of shadow and placement change the scene it stands in.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from aesthetic_jax.data.scenes.products import COLOURS, Box, Product

# The parts of a picture, and the flaws of each. A picture has at most one flaw of each part.
PARTS = {
    "product": (
        "stretched",
        "bent",
        "other_label",
        "other_colour",
        "cap_missing",
        "second_cap",
        "growth",
        "label_spill",
        "cut_off",
    ),
    "shadow": ("wrong_side", "wrong_length", "missing", "doubled"),
    "placement": ("floating", "sunk", "over_edge", "leaning"),
}

# Appearance asks whether shape, colour, label and cap are kept: every flaw of the product changes
# one. Extension asks whether the product is whole, with nothing grown on: other shapes or colours
# leave it whole.
_EXTENSION = ("cap_missing", "second_cap", "growth", "label_spill", "cut_off")
_FAILING = {  # {dimension: flaws that break it}
    "appearance_deformation": PARTS["product"],
    "physical_shadow": PARTS["shadow"],
    "placement_layout": PARTS["placement"],
    "extension_rationality": _EXTENSION,
}
# {flaw: dimensions that it breaks}; depends on the flaw's name alone.
BREAKS = {
    flaw: tuple(dimension for dimension, flaws in _FAILING.items() if flaw in flaws)
    for part in PARTS.values()
    for flaw in part
}


@dataclasses.dataclass(frozen=True)
class Flaw:
    """One flaw of one candidate.

    Attributes:
        name: a key of BREAKS.
        strength: in (0, 1].
        side: -1 for left, 1 for right; some flaws have no side.
        colour: the name of the new colour, for flaws that change one.
    """

    name: str
    strength: float
    side: int
    colour: str


def random_flaw(
    rng: np.random.Generator, names: Sequence[str], product: Product, strength: tuple[float, float]
) -> Flaw:
    """Draws one of the named flaws; its colour is none of the product's.

    Args:
        rng: random generator.
        names: flaws to choose from.
        product: the product that has the flaw.
        strength: range to draw the strength from.
    """
    taken = {product.colour, product.label, product.cap}
    colour = str(rng.choice([name for name in COLOURS if name not in taken]))
    name = str(rng.choice(names))
    return Flaw(name, float(rng.uniform(*strength)), int(rng.choice([-1, 1])), colour)


def _pixels(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    """A box in pixels of an image."""
    width, height = image.size
    return (
        round(box[0] * width),
        round(box[1] * height),
        round(box[2] * width),
        round(box[3] * height),
    )


def _tint(image: Image.Image, box: Box, colour: str, amount: float) -> Image.Image:
    """Gives a region another colour but keeps its brightness."""
    left, top, right, bottom = _pixels(box, image)
    pixels = np.asarray(image).astype(np.float32)
    region = pixels[top:bottom, left:right, :3]
    brightness = region.mean(-1, keepdims=True)
    tinted = np.array(COLOURS[colour]) * np.clip(
        0.55 + 0.45 * brightness / max(1.0, float(brightness.mean())), 0, 1.2
    )
    region += amount * (tinted - region)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _widen(image: Image.Image, left: int, right: int) -> Image.Image:
    """Adds transparent columns on both sides."""
    wide = Image.new("RGBA", (image.width + left + right, image.height))
    wide.paste(image, (left, 0))
    return wide


def _stretched(image: Image.Image, flaw: Flaw, _: Product) -> Image.Image:
    factor = 1 + 0.9 * flaw.strength
    wide, high = (factor, 1.0) if flaw.side > 0 else (1 / factor, 1.0)
    return image.resize(
        (max(2, round(image.width * wide)), max(2, round(image.height * high))),
        Image.Resampling.BILINEAR,
    )


def _bent(image: Image.Image, flaw: Flaw, _: Product) -> Image.Image:
    reach = round(0.75 * flaw.strength * image.width)
    wide = np.asarray(_widen(image, reach, reach))
    height = np.linspace(1, 0, wide.shape[0])
    shift = np.round(flaw.side * reach * height**2).astype(int)
    columns = np.clip(np.arange(wide.shape[1])[None] - shift[:, None], 0, wide.shape[1] - 1)
    return Image.fromarray(wide[np.arange(wide.shape[0])[:, None], columns])


def _other_label(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    return _tint(image, product.label_box, flaw.colour, 0.4 + 0.6 * flaw.strength)


def _other_colour(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    tinted = _tint(
        image, (0.0, product.cap_box[3], 1.0, 1.0), flaw.colour, 0.4 + 0.6 * flaw.strength
    )
    if product.label is not None:  # the label keeps its colour
        box = _pixels(product.label_box, image)
        tinted.paste(image.crop(box), box[:2])
    return tinted


def _cap_missing(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    pixels = np.array(image)
    bottom = round(product.cap_box[3] * image.height)
    pixels[: max(1, round(bottom * (0.5 + 0.5 * flaw.strength))), :, 3] = 0
    return Image.fromarray(pixels)


def _second_cap(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    cap = image.crop(_pixels(product.cap_box, image))
    size = 0.4 + 0.3 * flaw.strength
    cap = cap.resize((max(2, round(size * image.width)), max(2, round(0.45 * size * image.height))))
    wide = _widen(image, cap.width, cap.width)
    left = wide.width - round(1.25 * cap.width) if flaw.side > 0 else round(0.25 * cap.width)
    wide.paste(cap, (left, round(0.5 * image.height)), cap)
    return wide


def _growth(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    reach = round((0.3 + 0.45 * flaw.strength) * image.width)
    wide = _widen(image, reach, reach)
    colour = image.getpixel((image.width // 2, round(0.94 * image.height)))
    centre = wide.width - reach if flaw.side > 0 else reach
    top, size = round(0.42 * image.height), round(0.8 * reach)
    behind = Image.new("RGBA", wide.size)
    bounds = (centre - reach + 1, top - size // 2, centre + reach - 1, top + size // 2)
    ImageDraw.Draw(behind).ellipse(bounds, fill=colour)
    behind.paste(wide, (0, 0), wide)
    return behind


def _label_spill(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    reach = round((0.25 + 0.5 * flaw.strength) * image.width)
    wide = _widen(image, reach, reach)
    left, top, right, bottom = _pixels(product.label_box, image)
    label = image.crop((left, top, right, bottom)).resize(
        (reach + (right - left) // 2, bottom - top)
    )
    left = wide.width - label.width if flaw.side > 0 else 0
    wide.alpha_composite(label, (left, top))  # a bent product's label has transparent corners
    return wide


def _cut_off(image: Image.Image, flaw: Flaw, _: Product) -> Image.Image:
    pixels = np.array(image)
    x = np.linspace(0, 1, image.width)[:: -flaw.side]  # from the side that is cut off
    y = np.linspace(0, 1, image.height)
    # The cut slants from the upper corner to the foot.
    pixels[x < (0.15 + 0.65 * flaw.strength) * y[:, None], 3] = 0
    return Image.fromarray(pixels)


_CHANGES = {
    "stretched": _stretched,
    "bent": _bent,
    "other_label": _other_label,
    "other_colour": _other_colour,
    "cap_missing": _cap_missing,
    "second_cap": _second_cap,
    "growth": _growth,
    "label_spill": _label_spill,
    "cut_off": _cut_off,
}


def change_cutout(image: Image.Image, flaw: Flaw, product: Product) -> Image.Image:
    """Applies a flaw of the product to its cut-out; other flaws leave it unchanged."""
    return _CHANGES[flaw.name](image, flaw, product) if flaw.name in _CHANGES else image
