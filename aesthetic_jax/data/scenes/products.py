"""Products as cut-outs: RGBA images with a known label and cap.

Six kinds are drawn; a user's own products are read from files.
"""

import dataclasses
import itertools
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
# Left, top, right, bottom, as fractions of the cut-out's width and height.
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Product:
    """A product, independent of the scene it stands in.

    Attributes:
        name: noun for it in a chain of thought.
        colour: name of the body's colour; None for a user's cut-out.
        label: name of the label's colour; None for a user's cut-out.
        cap: name of the cap's colour; None for a user's cut-out.
        draw: (height in pixels) -> RGBA cut-out.
        height: height as a fraction of the scene's height.
        label_box: where the label is.
        cap_box: where the cap is.
    """

    name: str
    colour: str | None
    label: str | None
    cap: str | None
    draw: Callable[[int], Image.Image]
    height: float
    label_box: Box
    cap_box: Box


# {kind: (width / height, height in the scene, label box, cap box)}
KINDS: dict[str, tuple[float, float, Box, Box]] = {
    "bottle": (0.46, 0.60, (0.0, 0.48, 1.0, 0.82), (0.28, 0.0, 0.72, 0.16)),
    "jar": (0.90, 0.44, (0.0, 0.42, 1.0, 0.82), (0.06, 0.0, 0.94, 0.22)),
    "box": (0.74, 0.52, (0.14, 0.34, 0.86, 0.74), (0.0, 0.0, 1.0, 0.16)),
    "tube": (0.44, 0.58, (0.06, 0.40, 0.94, 0.74), (0.22, 0.0, 0.78, 0.18)),
    "can": (0.62, 0.50, (0.0, 0.34, 1.0, 0.74), (0.05, 0.0, 0.95, 0.14)),
    "blister": (0.80, 0.52, (0.12, 0.66, 0.88, 0.90), (0.30, 0.0, 0.70, 0.16)),
}


def draw_product(
    kind: str, colour: str, label: str, cap: str, stripes: int, height: int
) -> Image.Image:
    """Draws a cut-out of one of the six kinds, evenly lit.

    Args:
        kind: bottle, jar, box, tube, can or blister.
        colour: colour of the body; a name in COLOURS.
        label: colour of the label; a name in COLOURS.
        cap: colour of the cap; a name in COLOURS.
        stripes: lines of print on the label.
        height: height of the cut-out in pixels.
    """
    ratio, _, label_box, cap_box = KINDS[kind]
    size = max(4, round(height * ratio)), height
    image = Image.new("RGBA", size)
    draw = ImageDraw.Draw(image)
    _draw_body(draw, size, kind, COLOURS[colour])
    draw.rectangle(_scale(label_box, size), fill=COLOURS[label])
    ink = COLOURS["black" if label != "black" else "white"]
    left, top, right, bottom = label_box
    for stripe in range(stripes):
        y = top + (bottom - top) * (stripe + 0.7) / (stripes + 0.4)
        end = right - (right - left) * (0.16 if stripe % 2 else 0.3)
        draw.rectangle(_scale((left + (right - left) * 0.16, y, end, y + 0.035), size), fill=ink)
    draw.rounded_rectangle(_scale(cap_box, size), radius=0.04 * size[0], fill=COLOURS[cap])
    return image


def _draw_body(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], kind: str, colour: tuple[int, int, int]
) -> None:
    width, height = size

    def rounded(top: float, radius: float) -> None:
        box = _scale((0.0, top, 1.0, 1.0), size)
        draw.rounded_rectangle(box, radius=radius * width, fill=colour)

    def polygon(points: list[tuple[float, float]], fill: tuple[int, ...]) -> None:
        draw.polygon([(x * (width - 1), y * (height - 1)) for x, y in points], fill)

    if kind == "bottle":
        neck = [(0.34, 0.12), (0.66, 0.12), (0.66, 0.22)]
        shoulders = [(1.0, 0.36), (1.0, 0.5), (0.0, 0.5), (0.0, 0.36)]
        polygon([*neck, *shoulders, (0.34, 0.22)], colour)
        rounded(0.36, 0.12)
    elif kind == "jar":
        rounded(0.16, 0.16)
    elif kind == "tube":
        top = [(0.26, 0.16), (0.74, 0.16), (0.92, 0.26)]
        polygon([*top, (1.0, 1.0), (0.0, 1.0), (0.08, 0.26)], colour)
        seam = [(0.008, 0.93), (0.992, 0.93), (1.0, 1.0), (0.0, 1.0)]
        polygon(seam, tuple(int(0.8 * x) for x in colour))
    elif kind == "can":
        rounded(0.05, 0.1)
    elif kind == "blister":
        rounded(0.12, 0.05)
        for row, column in itertools.product(range(2), range(3)):
            left, top = 0.12 + 0.28 * column, 0.2 + 0.22 * row
            pill = _scale((left, top, left + 0.2, top + 0.16), size)
            draw.ellipse(pill, fill=(235, 235, 230))
    else:
        draw.rectangle(_scale((0.0, 0.0, 1.0, 1.0), size), fill=colour)


def _scale(box: Box, size: tuple[int, int]) -> Box:
    """A box in pixels, right and bottom included, as ImageDraw takes it."""
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width - 1, box[3] * height - 1


def random_product(rng: np.random.Generator) -> Product:
    """Draws one of the six kinds; body, label and cap have different random colours."""
    kind = str(rng.choice(list(KINDS)))
    colour, label, cap = (str(x) for x in rng.choice(list(COLOURS), size=3, replace=False))
    stripes = int(rng.integers(1, 4))
    _, height, label_box, cap_box = KINDS[kind]
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
    """Reads a user's product: an image with transparency, cropped to its opaque part.

    Raises:
        UserError: the image can't be read, has no transparency, or nothing in it is opaque.
    """
    image = read_photo(path)
    if not image.has_transparency_data:
        raise UserError(f"{path}: has no transparency; cut the product out and save an RGBA PNG")
    image = image.convert("RGBA")
    opaque = [255 * (alpha > 127) for alpha in range(256)]
    bounds = image.getchannel("A").point(opaque).getbbox()
    if bounds is None:
        raise UserError(f"{path}: is fully transparent; save the product with its alpha channel")
    return image.crop(bounds)


def read_photo(path: str) -> Image.Image:
    """Reads an image file of one of FORMATS.

    Raises:
        UserError: it can't be read.
    """
    try:
        with epath.Path(path).open("rb") as file:
            image = Image.open(file, formats=FORMATS)
            image.load()
            return image
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path}: is not a readable image ({reason}); replace it") from None


def cutout_product(cutout: Image.Image) -> Product:
    """Makes a product from a user's cut-out: its middle counts as the label, its top as the cap."""
    ratio = cutout.width / cutout.height
    return Product(
        name="product",
        colour=None,
        label=None,
        cap=None,
        draw=lambda pixels: cutout.resize(
            (max(4, round(pixels * ratio)), pixels), Image.Resampling.LANCZOS
        ),
        height=min(0.6, 0.55 / ratio),
        label_box=(0.15, 0.4, 0.85, 0.75),
        cap_box=(0.0, 0.0, 1.0, 0.16),
    )
