"""Images from encoded bytes to the tiles that the model sees, as PIL computes them."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from aesthetic_jax.errors import UserError

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One image in RGB, as a person sees it: rotated as EXIF says, alpha over white, 16 bit scaled to 8.

    Args:
        data: an encoded JPEG, PNG, WebP, BMP, TIFF, GIF or PPM.
        name: what errors call it.

    Raises:
        UserError: not decodable, an animation, or more than max_pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning about large images; ours is an error
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{name}: has {image.width} x {image.height} pixels, more than {max_pixels:,}; make it smaller"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"{name}: is an animation of {image.n_frames} frames; save one frame of it")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"{name}: can't be decoded as an image ({reason}); replace the file") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey arrives as integers up to 65535, which convert() would clip at 255
        values = np.asarray(image, np.float64)
        scale = 257 if image.mode.startswith("I") else max(1.0, values.max() / 255)
        return Image.fromarray(np.clip(np.round(values / scale), 0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def tile_grid(width: int, height: int, tile_size: int, max_tiles: int, min_tiles: int = 1) -> tuple[int, int]:
    """Columns and rows of tiles whose shape is nearest to the image's; InternVL's `find_closest_aspect_ratio`.

    Between equally near grids the larger one wins where the image has more than half its pixels.
    """
    counts = range(1, max_tiles + 1)
    grids = [(i, j) for i in counts for j in counts if min_tiles <= i * j <= max_tiles]
    best, nearest = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        larger = width * height > 0.5 * tile_size**2 * columns * rows
        if distance < nearest or (distance == nearest and larger):
            best, nearest = (columns, rows), distance
    return best


def tile_image(
    image: Image.Image, tile_size: int, max_tiles: int = 1, min_tiles: int = 1
) -> UInt8[np.ndarray, "N X X 3"]:
    """Tiles of an image, row by row, and a thumbnail of the whole behind them if there are several.

    Equal, byte for byte, to OpenGVLab's `dynamic_preprocess` with use_thumbnail and to transformers'
    GotOcr2ImageProcessorPil, before normalisation.
    """
    columns, rows = tile_grid(*image.size, tile_size, max_tiles, min_tiles)
    resized = np.asarray(image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC))
    tiles = resized.reshape(rows, tile_size, columns, tile_size, 3).swapaxes(1, 2).reshape(-1, tile_size, tile_size, 3)
    if len(tiles) > 1:
        thumbnail = np.asarray(image.resize((tile_size, tile_size), Image.Resampling.BICUBIC))
        tiles = np.concatenate([tiles, thumbnail[None]])
    return tiles
