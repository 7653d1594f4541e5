"""Products as cut-outs: RGBA images with a known label and cap. Six kinds are drawn; a user's own are read from files."""

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from aesthetic_jax.data.images import FORMATS
from aesthetic_jax.errors import UserError

COLOURS = {
    "red": (214, 45, 45),
    "blue": (42, 84, 205),
    "green": (40, 150, 72),
    "yellow": (240, 200, 40),
    "purple": (135, 60, 170),
    "orange": (242, 125, 30),
    "white": (244, 244, 240),
    "black": (45, 45, 50),
}
Box = tuple[float, float, float, float]  # left, top, right, bottom, in shares of the cut-out's width and height


@dataclasses.dataclass(frozen=True)
class Product:
    """What a product is, whatever scene it stands in.

    Attributes:
        name: its noun in a chain of thought.
        colour, label, cap: colour names; None where they are not known (a user's cut-out).
        draw: (height in pixels) -> RGBA cut-out.
        height: of the product in shares of the scene's height.
        label_box, cap_box: where label and cap are.
    """

    name: str
    colour: str | None
    label: str | None
    cap: str | None
    draw: Callable[[int], Image.Image]
    height: float
    label_box: Box
    cap_box: Box


# kind: width / height, height in the scene, label box, cap box
_KINDS: dict[str, tuple[float, float, Box, Box]] = {
    "bottle": (0.46, 0.60, (0.0, 0.48, 1.0, 0.82), (0.28, 0.0, 0.72, 0.16)),
    "jar": (0.90, 0.44, (0.0, 0.42, 1.0, 0.82), (0.06, 0.0, 0.94, 0.22)),
    "box": (0.74, 0.52, (0.14, 0.34, 0.86, 0.74), (0.0, 0.0, 1.0, 0.16)),
    "tube": (0.44, 0.58, (0.06, 0.40, 0.94, 0.74), (0.22, 0.0, 0.78, 0.18)),
    "can": (0.62, 0.50, (0.0, 0.34, 1.0, 0.74), (0.05, 0.0, 0.95, 0.14)),
    "blister": (0.80, 0.52, (0.12, 0.66, 0.88, 0.90), (0.30, 0.0, 0.70, 0.16)),
}


def draw_product(kind: str, colour: str, label: str, cap: str, stripes: int, height: int) -> Image.Image:
    """A cut-out of one of the six kinds, `height` pixels high, evenly lit."""
    ratio, _, label_box, cap_box = _KINDS[kind]
    width = max(4, round(height * ratio))
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    body, light, ink = COLOURS[colour], COLOURS[label], COLOURS["black" if label != "black" else "white"]

    def box(shares: Box) -> tuple[float, float, float, float]:
        return shares[0] * width, shares[1] * height, shares[2] * width - 1, shares[3] * height - 1

    def polygon(points: list[tuple[float, float]], fill) -> None:
        draw.polygon([(x * (width - 1), y * (height - 1)) for x, y in points], fill)

    if kind == "bottle":
        polygon(
            [(0.34, 0.12), (0.66, 0.12), (0.66, 0.22), (1, 0.36), (1, 0.5), (0, 0.5), (0, 0.36), (0.34, 0.22)], body
        )
        draw.rounded_rectangle(box((0, 0.36, 1, 1)), radius=0.12 * width, fill=body)
    elif kind == "jar":
        draw.rounded_rectangle(box((0, 0.16, 1, 1)), radius=0.16 * width, fill=body)
    elif kind == "tube":
        polygon([(0.26, 0.16), (0.74, 0.16), (0.92, 0.26), (1, 1), (0, 1), (0.08, 0.26)], body)
        polygon([(0.008, 0.93), (0.992, 0.93), (1, 1), (0, 1)], tuple(int(0.8 * x) for x in body))
    elif kind == "can":
        draw.rounded_rectangle(box((0, 0.05, 1, 1)), radius=0.1 * width, fill=body)
    elif kind == "blister":
        draw.rounded_rectangle(box((0, 0.12, 1, 1)), radius=0.05 * width, fill=body)
        for row in range(2):
            for column in range(3):
                left, top = 0.12 + 0.28 * column, 0.2 + 0.22 * row
                draw.ellipse(box((left, top, left + 0.2, top + 0.16)), fill=(235, 235, 230))
    else:
        draw.rectangle(box((0, 0, 1, 1)), fill=body)
    draw.rectangle(box(label_box), fill=light)
    left, top, right, bottom = label_box
    for stripe in range(stripes):  # as lines of print
        y = top + (bottom - top) * (stripe + 0.7) / (stripes + 0.4)
        end = right - (right - left) * (0.16 if stripe % 2 else 0.3)
        draw.rectangle(box((left + (right - left) * 0.16, y, end, y + 0.035)), fill=ink)
    draw.rounded_rectangle(box(cap_box), radius=0.04 * width, fill=COLOURS[cap])
    return image


def random_product(rng: np.random.Generator) -> Product:
    """One of the six kinds in random colours; body, label and cap differ from one another."""
    kind = str(rng.choice(list(_KINDS)))
    colour, label, cap = (str(x) for x in rng.choice(list(COLOURS), size=3, replace=False))
    stripes = int(rng.integers(1, 4))
    _, height, label_box, cap_box = _KINDS[kind]
    return Product(
        name=kind,
        colour=colour,
        label=label,
        cap=cap,
        draw=lambda pixels: draw_product(kind, colour, label, cap, stripes, pixels),
        height=height,
        label_box=label_box,
        cap_box=cap_box,
    )


def read_cutout(path: str) -> Image.Image:
    """A user's product: an RGBA image, cropped to what is not transparent.

    Raises:
        UserError: not an image with transparency, or nothing in it is opaque.
    """
    image = read_photo(path)
    if not image.has_transparency_data:
        raise UserError(f"{path}: has no transparency; cut the product out and save it as RGBA PNG")
    image = image.convert("RGBA")
    bounds = image.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
    if bounds is None:
        raise UserError(f"{path}: is fully transparent; save the product with its alpha channel")
    return image.crop(bounds)


def read_photo(path: str) -> Image.Image:
    """Any image file."""
    try:
        with epath.Path(path).open("rb") as file:
            image = Image.open(file, formats=FORMATS)
            image.load()
            return image
    except OSError as error:
        raise UserError(f"{path}: can't be read as an image ({error}); remove or replace it") from None


def cutout_product(cutout: Image.Image) -> Product:
    """A user's cut-out as a product: the middle stands for its label, the top for its cap."""
    ratio = cutout.width / cutout.height
    return Product(
        name="product",
        colour=None,
        label=None,
        cap=None,
        draw=lambda pixels: cutout.resize((max(4, round(pixels * ratio)), pixels), Image.Resampling.LANCZOS),
        height=min(0.6, 0.55 / ratio),
        label_box=(0.15, 0.4, 0.85, 0.75),
        cap_box=(0.0, 0.0, 1.0, 0.16),
    )
