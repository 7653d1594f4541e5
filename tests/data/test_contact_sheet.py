import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.contact_sheet import choose_samples, draw_contact_sheet
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.records import Record

GREEN, RED, GREY = (28, 140, 62), (200, 38, 38), (150, 150, 155)


def encode(colour, size=(40, 40)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def record(answer="A", options=4, dimension=0, images=None, **fields):
    images = images or tuple(encode((0, 0, 40 * i)) for i in range(options + 1))
    settings = {"id": "s", "reasoning": None, "question": None} | fields
    return Record(
        dimension=DIMENSIONS[dimension],
        images=images,
        answer=frozenset(answer),
        num_options=options,
        **settings,
    )


def runs(sheet, colour):
    """(left, right, top, bottom) of each frame of a colour, from its upper and left edges."""
    pixels = (np.asarray(sheet) == colour).all(-1)
    frames = []
    for y in range(len(pixels)):
        starts = np.flatnonzero(pixels[y] & ~np.r_[False, pixels[y][:-1]])
        for x in starts:
            end = x + np.argmin(np.r_[pixels[y, x:], False])
            if end - x > 100 and not (y and pixels[y - 1, x:end].any()):
                down = y + np.argmin(np.r_[pixels[y:, x], False])
                if down - y > 100:
                    frames.append((int(x), int(end), y, int(down)))
    return frames


def test_frames_say_what_passes():
    sheet = draw_contact_sheet(
        [("train", record("BD")), ("test", record("", 2)), ("test", record("AB", 2))]
    )
    places = sorted(
        runs(sheet, GREY) + runs(sheet, GREEN) + runs(sheet, RED), key=lambda x: (x[2], x[0])
    )
    colours = {
        place: name
        for name, colour in (("o", GREY), ("+", GREEN), ("-", RED))
        for place in runs(sheet, colour)
    }
    assert "".join(colours[place] for place in places) == "o-+-+" + "o--" + "o++"
    for row in (places[:5], places[5:8], places[8:]):
        for i, (left, right, top, bottom) in enumerate(row):
            assert right - left == bottom - top
            assert sheet.getpixel(((left + right) // 2, (top + bottom) // 2)) == (0, 0, 40 * i)
    assert max(right for _, right, _, _ in places) < sheet.width
    assert max(bottom for *_, bottom in places) < sheet.height


def test_images_keep_their_shape_and_broken_ones_are_crossed_out():
    images = (
        encode("blue", (400, 100)),
        encode("blue", (1, 300)),
        b"broken",
        encode("blue", (3, 3)),
    )
    sheet = draw_contact_sheet(
        [("train", record("A", 3, images=images, id="long" * 30, question="Which?"))]
    )
    blue = (np.asarray(sheet) == (0, 0, 255)).all(-1)
    widths = []
    for left, right, top, bottom in sorted(
        runs(sheet, GREY) + runs(sheet, GREEN) + runs(sheet, RED)
    ):
        inside = blue[top:bottom, left:right]
        widths.append((int(inside.any(0).sum()), int(inside.any(1).sum())))
    assert widths == [(176, 44), (1, 176), (0, 0), (176, 176)]


def test_eight_candidates_and_no_samples_fit():
    assert len(runs(draw_contact_sheet([("train", record("H", 8))]), RED)) == 7
    assert draw_contact_sheet([]).width > 0


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 20), st.integers(0, 5))
def test_the_choice_is_spread_over_dimensions(dimensions, number, seed):
    dimensions = np.array(dimensions, np.int8)
    chosen = choose_samples(dimensions, number, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(number, len(dimensions))
    assert (np.diff(dimensions[chosen]) >= 0).all()
    there, shown = (np.bincount(x, minlength=4) for x in (dimensions, dimensions[chosen]))
    assert all(a <= b + 1 or c == b for b, c in zip(shown, there, strict=True) for a in shown)
    np.testing.assert_array_equal(chosen, choose_samples(dimensions, number, seed))


def test_the_seed_decides():
    dimensions = np.arange(400) % 4
    choices = {tuple(choose_samples(dimensions, 8, seed).tolist()) for seed in range(20)}
    assert len(choices) == 20


@pytest.mark.parametrize("dimension", range(4))
def test_each_dimension_has_one_heading(dimension):
    one = draw_contact_sheet([("train", record(dimension=dimension))])
    two = draw_contact_sheet([("train", record(dimension=dimension))] * 2)
    other = draw_contact_sheet(
        [("train", record(dimension=dimension)), ("train", record(dimension=dimension - 1))]
    )
    assert one.height < two.height < other.height
