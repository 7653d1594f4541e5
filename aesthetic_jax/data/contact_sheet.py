"""A contact sheet: samples as a person judges them, the original and its candidates in a row, with the right answer."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from aesthetic_jax.data.images import decode_image
from aesthetic_jax.data.manifest import DIMENSIONS, OPTIONS
from aesthetic_jax.data.prompts import CRITERIA
from aesthetic_jax.data.records import Record
from aesthetic_jax.errors import UserError

_SIDE, _FRAME, _GAP, _MARGIN = 176, 5, 10, 24  # pixels
_LABELS, _CAPTION, _HEADING = 170, 22, 56
_PAPER, _INK, _FAINT, _GREY = (250, 250, 248), (30, 30, 34), (115, 115, 120), (150, 150, 155)
_PASS, _FAIL = (28, 140, 62), (200, 38, 38)


def choose_samples(dimensions: Int[np.ndarray, " n"], number: int, seed: int) -> Int[np.ndarray, " k"]:
    """Up to `number` samples, as many of each dimension as can be, drawn by seed; ordered by dimension, then by place.

    Args:
        dimensions: place in DIMENSIONS of each sample.
    """
    order = np.random.default_rng(seed).permutation(len(dimensions))
    turn = np.zeros(len(order), np.int64)  # how many of its dimension are drawn before a sample
    for dimension in range(len(DIMENSIONS)):
        of_it = dimensions[order] == dimension
        turn[of_it] = np.arange(of_it.sum())
    drawn = order[np.argsort(turn, kind="stable")[:number]]
    return drawn[np.lexsort((drawn, dimensions[drawn]))]


def draw_contact_sheet(samples: Sequence[tuple[str, Record]]) -> Image.Image:
    """One row a sample, under a heading for each dimension; candidates that pass are framed green, the others red.

    Args:
        samples: (split, record), those of a dimension next to each other.
    """
    columns = max((len(record.images) for _, record in samples), default=2)
    row = _SIDE + 2 * _FRAME + _CAPTION + _GAP
    headings = sum(i == 0 or samples[i - 1][1].dimension != x.dimension for i, (_, x) in enumerate(samples))
    width = 2 * _MARGIN + _LABELS + columns * (_SIDE + 2 * _FRAME + _GAP) - _GAP
    sheet = Image.new("RGB", (width, 2 * _MARGIN + headings * _HEADING + len(samples) * row), _PAPER)
    draw, y, dimension = ImageDraw.Draw(sheet), _MARGIN, None
    for split, record in samples:
        if record.dimension != dimension:
            dimension = record.dimension
            title, top = dimension.replace("_", " "), y + _HEADING - 46
            _write(draw, (_MARGIN, top), title, 20, _INK, width)
            x = _MARGIN + _font(20).getlength(title) + 14
            _write(draw, (x, top + 4), f"Which of them {CRITERIA[dimension]}?", 15, _FAINT, width - x - _MARGIN)
            y += _HEADING
        _draw_sample(sheet, draw, y, split, record)
        y += row
    return sheet


def _draw_sample(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, split: str, record: Record) -> None:
    answer = ", ".join(sorted(record.answer)) or "None"
    lines = [(record.id, 17, _INK), (split, 14, _FAINT), (f"answer: {answer}", 15, _INK)]
    if record.question is not None:
        lines.append(("asks a question of its own", 12, _FAINT))
    if record.reasoning is None:
        lines.append(("no reasoning", 12, _FAINT))
    top = y + 6
    for text, size, colour in lines:
        _write(draw, (_MARGIN, top), text, size, colour, _LABELS - _GAP)
        top += size + 8
    for place, data in enumerate(record.images):
        letter = OPTIONS[place - 1] if place else ""
        passes = letter in record.answer
        colour = (_PASS if passes else _FAIL) if letter else _GREY
        caption = f"{letter} {'passes' if passes else 'fails'}" if letter else "original"
        x = _MARGIN + _LABELS + place * (_SIDE + 2 * _FRAME + _GAP)
        draw.rectangle((x, y, x + _SIDE + 2 * _FRAME - 1, y + _SIDE + 2 * _FRAME - 1), colour)
        sheet.paste(_thumbnail(data), (x + _FRAME, y + _FRAME))
        _write(draw, (x + 2, y + _SIDE + 2 * _FRAME + 2), caption, 14, colour if letter else _FAINT, _SIDE)


def _thumbnail(data: bytes) -> Image.Image:
    """The whole image in the middle of a square; one that can't be decoded is crossed out."""
    square = Image.new("RGB", (_SIDE, _SIDE), (225, 225, 225))
    try:
        image = decode_image(data, "")
    except UserError:
        draw = ImageDraw.Draw(square)
        draw.line((0, 0, _SIDE, _SIDE), _GREY, 2)
        draw.line((0, _SIDE, _SIDE, 0), _GREY, 2)
        draw.text(
            (_SIDE / 2, _SIDE / 2),
            "can't be decoded",
            _INK,
            _font(14),
            anchor="mm",
            stroke_width=4,
            stroke_fill=(225,) * 3,
        )
        return square
    scale = _SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    square.paste(image, ((_SIDE - image.width) // 2, (_SIDE - image.height) // 2))
    return square


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour, room: float) -> None:
    """One line of text, cut where the room ends."""
    font = _font(size)
    if font.getlength(text) > room:
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text += "…"
    draw.text(at, text, colour, font)
