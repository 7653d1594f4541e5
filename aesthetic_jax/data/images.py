"""From encoded images to the model's tiles, computed with PIL."""

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

# InternVL normalises RGB values in [0, 1] with these, on the device.
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
    """The format of an encoded image by its first bytes; None if it is not in FORMATS."""
    for kind in FORMATS:
        accept = Image.OPEN[kind][1]
        if accept is not None and accept(data[:16]) is True:
            return kind
    return None


def decode_image(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, reduced: bool = False
) -> Image.Image:
    """Decodes an image to RGB as a person sees it.

    EXIF rotation is applied, alpha is composited over white, and 16-bit values keep their upper 8
    bits. A phone's multi-picture JPEG (MPO) yields its main picture. Colour profiles are ignored,
    as in InternVL.

    Args:
        data: an encoded JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
        name: what errors call the image.
        max_pixels: largest width times height.
        reduced: decode a JPEG at an eighth of its size. All of its data is still read, which is
            enough to check it.

    Raises:
        UserError: the image can't be decoded, is animated, or has more than max_pixels.
    """
    kind = image_format(data)
    if kind is None:
        raise UserError(
            f"{name}: is not an image of a known format; save it as one of {', '.join(FORMATS)}"
        )
    # The plugin itself opens it: Image.open turns JPEG into MPO, and warns of large images first.
    plugin = JpegImagePlugin.JpegImageFile if kind == "JPEG" else Image.OPEN[kind][0]
    try:
        image = plugin(io.BytesIO(data), "")
        if image.width * image.height > max_pixels:
            raise UserError(
                f"{name}: has {image.width} x {image.height} pixels, more than {max_pixels:,}; "
                "make it smaller"
            )
        if getattr(image, "is_animated", False):
            raise UserError(
                f"{name}: is an animation or has several pages; save one frame as an image"
            )
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
    """Applies EXIF rotation."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata: viewers show the picture as it is stored
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(
            f"{name}: has floating-point values of unknown range; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip it at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise UserError(f"{name}: has more than 16 bits per value; save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    sides = range(1, max_tiles + 1)
    grids = [
        (columns, rows)
        for columns in sides
        for rows in sides
        if min_tiles <= columns * rows <= max_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def tile_grid(
    width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """Columns and rows of the grid of tiles whose aspect ratio is closest to the image's.

    Equal to InternVL's `find_closest_aspect_ratio`. Of equally close grids the larger wins if the
    image has more than half of its pixels.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        tile_size: side of a tile in pixels.
        min_tiles: fewest tiles of the grid.
        max_tiles: most tiles of the grid.

    Raises:
        ValueError: unless 1 <= min_tiles <= max_tiles.
    """
    if not 1 <= min_tiles <= max_tiles:
        raise ValueError(f"no grid has {min_tiles} to {max_tiles} tiles; give 1 <= min <= max")
    best, closest = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(width / height - columns / rows)
        larger = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < closest or (distance == closest and larger):
            best, closest = (columns, rows), distance
    return best


def tile_image(
    image: Image.Image,
    tile_size: int,
    max_tiles: int = 1,
    min_tiles: int = 1,
    use_thumbnail: bool = True,
) -> UInt8[np.ndarray, "N X X 3"]:
    """Tiles of an RGB image, row by row, then a thumbnail of the whole if there are several.

    Byte for byte what OpenGVLab's `dynamic_preprocess`, and transformers' GotOcr2ImageProcessorPil
    before normalisation, return.

    Args:
        image: in RGB.
        tile_size: side X of a tile in pixels.
        max_tiles: most tiles, the thumbnail not counted.
        min_tiles: fewest tiles.
        use_thumbnail: whether to add the thumbnail.
    """
    columns, rows = tile_grid(*image.size, tile_size, min_tiles, max_tiles)
    resized = np.asarray(
        image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    )
    tiles = (
        resized.reshape(rows, tile_size, columns, tile_size, 3)
        .swapaxes(1, 2)
        .reshape(-1, tile_size, tile_size, 3)
    )
    if use_thumbnail and len(tiles) > 1:
        thumbnail = np.asarray(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, thumbnail[None]])
    return tiles
