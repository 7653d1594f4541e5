import contextlib
import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from aesthetic_jax.data.images import decode_image, image_format, tile_grid, tile_image
from aesthetic_jax.errors import UserError


def noise(width=20, height=12, channels=3, seed=0, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_out_as_they_went_in(kind):
    data = encode(Image.fromarray(noise()), kind)
    assert image_format(data) == kind
    np.testing.assert_array_equal(pixels(data), noise())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_equal_what_pil_decodes(kind):
    data = encode(Image.fromarray(noise()), kind)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(pixels(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, lambda x: x),
        (2, np.fliplr),
        (3, lambda x: np.rot90(x, 2)),
        (4, np.flipud),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: np.rot90(x, 2).swapaxes(0, 1)),
        (8, np.rot90),
        (9, lambda x: x),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_rotation_is_applied(orientation, expected, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(noise()), kind, exif=exif)
    np.testing.assert_array_equal(pixels(data), expected(noise()))


def test_damaged_exif_leaves_the_picture_alone():
    data = encode(Image.fromarray(noise()), "PNG", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(pixels(data), noise())


def test_alpha_is_composited_on_white():
    rgba = noise(channels=4)
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    expected = colour * alpha + 255 * (1 - alpha)
    assert np.abs(pixels(encode(Image.fromarray(rgba))) - expected).max() <= 1
    invisible = np.dstack([rgba[..., :3], np.zeros_like(rgba[..., 0])])
    assert (pixels(encode(Image.fromarray(invisible))) == 255).all()


def test_grey_with_alpha_and_transparent_palette():
    assert (pixels(encode(Image.new("LA", (3, 2), (7, 0)))) == 255).all()
    assert (pixels(encode(Image.new("LA", (3, 2), (7, 255)))) == 7).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(encode(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(encode(palette, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_cmyk_grey_and_one_bit():
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(encode(cmyk, "JPEG")).astype(int) - [255, 0, 0]).max() <= 2
    assert (pixels(encode(Image.new("L", (3, 2), 99))) == 99).all()
    assert (pixels(encode(Image.new("1", (3, 2), 1))) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    expected = np.repeat((values >> 8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(values), kind)), expected)


def test_sixteen_bit_rgb_png():
    values = noise(width=3, height=2, dtype=np.uint16)

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(pixels(data), values >> 8)


def test_values_of_unknown_range_are_refused():
    for values, said in (
        (np.full((2, 2), 0.5, np.float32), "floating"),
        (np.full((2, 2), 70000, np.int32), "16 bits"),
    ):
        with pytest.raises(UserError, match=f"x: .*{said}"):
            decode_image(encode(Image.fromarray(values), "TIFF"), "x")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_are_refused_by_name(kind):
    frames = [Image.fromarray(noise(seed=seed)) for seed in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match=r"cat\.x: is an animation"):
        decode_image(data, "cat.x")


def test_a_gif_of_one_frame_and_a_phones_multi_picture_are_images():
    assert decode_image(encode(Image.new("RGB", (4, 3), "red"), "GIF"), "x").size == (4, 3)
    main, preview = Image.fromarray(noise(32, 24)), Image.fromarray(noise(8, 8))
    data = encode(main, "MPO", save_all=True, append_images=[preview])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert decode_image(data, "x").size == (32, 24)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    data = encode(Image.new("1", (300, 200)))
    assert decode_image(data, "x", max_pixels=60_000).size == (300, 200)
    with pytest.raises(UserError, match=r"big\.png: has 300 x 200 pixels, more than 59,999"):
        decode_image(data, "big.png", max_pixels=59_999)


def test_a_bomb_is_refused_by_one_line_without_a_warning():
    data = encode(Image.new("1", (20_000, 20_000)))  # Pillow's own check would raise at this size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="20000 x 20000"):
            decode_image(data, "x")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
@pytest.mark.parametrize("keep", [0.02, 0.5])
def test_truncated_files_are_refused_by_name(kind, keep):
    data = encode(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(UserError, match=r"^half\.jpg: ") as error:
        decode_image(data[: int(len(data) * keep)], "half.jpg")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(UserError, match="x: is not an image of a known format"):
        decode_image(data, "x")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_never_raise_anything_else(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]))
    damaged = bytearray(encode(Image.fromarray(noise()), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged metadata
        assert decode_image(bytes(damaged), "x", max_pixels=10**6).mode == "RGB"


def test_threads_leave_pil_and_the_warning_filters_as_they_were():
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    data = encode(Image.fromarray(noise(64, 64)), "JPEG")
    threads = [
        threading.Thread(target=lambda: [decode_image(data, "x") for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# --- tiling ---------------------------------------------------------------------------------------

# (columns, rows) for at most 12, 6 and 4 tiles of 448 pixels, by OpenGVLab's code and transformers.
VECTORS = {
    (448, 448): ((1, 1), (1, 1), (1, 1)),
    (512, 512): ((1, 1), (1, 1), (1, 1)),
    (634, 634): ((2, 2), (2, 2), (2, 2)),
    (640, 480): ((4, 3), (3, 2), (1, 1)),
    (480, 640): ((3, 4), (2, 3), (1, 2)),
    (1024, 768): ((4, 3), (3, 2), (2, 2)),
    (1920, 1080): ((4, 2), (2, 1), (2, 1)),
    (1000, 1000): ((3, 3), (2, 2), (2, 2)),
    (3000, 2000): ((3, 2), (3, 2), (2, 2)),
}


@pytest.mark.parametrize(("size", "grids"), VECTORS.items())
def test_grid_vectors(size, grids):
    assert tuple(tile_grid(*size, 448, 1, max_tiles) for max_tiles in (12, 6, 4)) == grids


sides = st.integers(1, 300)


@given(sides, sides, st.integers(1, 12), st.integers(0, 11))
def test_the_grid_is_the_nearest_within_bounds(width, height, min_tiles, extra):
    max_tiles = min_tiles + extra
    columns, rows = tile_grid(width, height, 28, min_tiles, max_tiles)
    assert min_tiles <= columns * rows <= max_tiles
    nearest = min(
        abs(width / height - i / j)
        for i in range(1, max_tiles + 1)
        for j in range(1, max_tiles + 1)
        if min_tiles <= i * j <= max_tiles
    )
    assert abs(width / height - columns / rows) == nearest


@given(sides, sides, st.integers(1, 12))
def test_the_grid_is_transformers(width, height, max_tiles):
    assert tile_grid(width, height, 28, 1, max_tiles) == get_optimal_tiled_canvas(
        (height, width), (28, 28), 1, max_tiles
    )


@pytest.mark.parametrize("bounds", [(0, 4), (3, 2)])
def test_bounds_without_a_grid_are_refused(bounds):
    with pytest.raises(ValueError, match="no grid"):
        tile_grid(10, 10, 28, *bounds)


@pytest.mark.parametrize(
    "size", [(56, 56), (28, 28), (90, 50), (50, 90), (640, 480), (31, 300), (7, 5)]
)
@pytest.mark.parametrize("max_tiles", [1, 4, 12])
def test_tiles_equal_transformers_bit_for_bit(size, max_tiles):
    image = Image.fromarray(noise(*size))
    oracle = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28},
        crop_to_patches=True,
        max_patches=max_tiles,
        do_rescale=False,
        do_normalize=False,
    )
    expected = oracle(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    tiles = tile_image(image, 28, max_tiles)
    assert tiles.dtype == np.uint8
    np.testing.assert_array_equal(tiles, expected)


def test_tiles_are_row_major_and_the_thumbnail_comes_last():
    image = Image.new("RGB", (56, 28), "red")
    image.paste("blue", (28, 0, 56, 28))
    tiles = tile_image(image, 28, max_tiles=2)
    assert tiles.shape == (3, 28, 28, 3)
    assert (tiles[0] == [255, 0, 0]).all()
    assert (tiles[1] == [0, 0, 255]).all()
    np.testing.assert_array_equal(
        tiles[2], np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC))
    )
    assert tile_image(image, 28, max_tiles=2, use_thumbnail=False).shape == (2, 28, 28, 3)
    assert tile_image(image, 28).shape == (1, 28, 28, 3)
