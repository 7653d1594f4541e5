"""Images from encoded bytes to the tiles that the model sees, as PIL computes them."""

import functools
import io
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import (  # the imports register the formats
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from aesthetic_jax.errors import UserError

# What InternVL normalises RGB values in [0, 1] with, on the device.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 100_000_000

Format = Literal["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_format(data: bytes) -> Format | None:
    """The format of an encoded image by its first bytes, None if it is none of FORMATS."""
    return next((kind for kind in FORMATS if Image.OPEN[kind][1](data[:16]) is True), None)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, reduced: bool = False) -> Image.Image:
    """One image in RGB, as a person sees it: turned as EXIF says, alpha over white, 16 bits cut to the upper 8.

    A phone's multi-picture JPEG (MPO) counts as its main picture. Colour profiles are not applied, as in InternVL.

    Args:
        data: an encoded JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
        name: what errors call it.
        max_pixels: width times height that are still decoded.
        reduced: of a JPEG all data is read, but an eighth of its size computed: to be sure of it.

    Raises:
        UserError: not decodable, an animation, or more than max_pixels.
    """
    kind = image_format(data)
    if kind is None:
        raise UserError(f"{name}: is no image of a known format; save it as one of {', '.join(FORMATS)}")
    # Opened by the plugin itself: Image.open makes MPO of JPEG, and warns of large images before we refuse them.
    plugin = JpegImagePlugin.JpegImageFile if kind == "JPEG" else Image.OPEN[kind][0]
    try:
        image = plugin(io.BytesIO(data), "")
        if image.width * image.height > max_pixels:
            raise UserError(
                f"{name}: has {image.width} x {image.height} pixels, more than {max_pixels:,}; make it smaller"
            )
        if getattr(image, "is_animated", False):
            raise UserError(f"{name}: is an animation or has several pages; save one frame as an image")
        if reduced and kind == "JPEG":
            image.draft(image.mode, (image.width // 8, image.height // 8))
        image.load()
        return _to_rgb(_upright(image), name)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{name}: can't be decoded ({reason}); replace the file") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata doesn't damage the picture; viewers show it as it is stored
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{name}: holds floating-point values of no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(f"{name}: holds more than 16 bits a value; save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if min_tiles <= columns * rows <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int) -> tuple[int, int]:
    """Columns and rows of tiles whose shape is nearest to the image's; InternVL's `find_closest_aspect_ratio`.

    Between equally near grids the one with more tiles wins where the image has more than half its pixels.

    Raises:
        ValueError: not 1 <= min_tiles <= max_tiles.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"from {min_tiles} to {max_tiles} tiles there is no grid")
    best, nearest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        larger = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < nearest or (distance == nearest and larger):
            best, nearest = (columns, rows), distance
    return best


def tile_image(
    image: Image.Image, tile_size: int, max_tiles: int = 1, min_tiles: int = 1, use_thumbnail: bool = True
) -> UInt8[np.ndarray, "N X X 3"]:
    """Tiles of an RGB image, row by row; behind several of them a thumbnail of the whole.

    Equal, byte for byte, to OpenGVLab's `dynamic_preprocess` and to transformers' GotOcr2ImageProcessorPil before
    normalisation.

    Args:
        tile_size: side X of a tile in pixels.
        max_tiles: bounds the grid, as min_tiles does; the thumbnail comes on top.
    """
    columns, rows = tile_grid(*image.size, tile_size, min_tiles, max_tiles)
    resized = np.asarray(image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC))
    tiles = resized.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2).reshape(-1, tile_size, tile_size, 3)
    if use_thumbnail and len(tiles) > 1:
        thumbnail = np.asarray(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, thumbnail[None]])
    return tiles
