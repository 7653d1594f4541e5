"""A contact sheet: each sample's images in a row, with the right answer, for a person to judge."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageDraw, ImageFont

from aesthetic_jax.data.answers import format_answer
from aesthetic_jax.data.images import decode_image
from aesthetic_jax.data.manifest import DIMENSIONS, image_role
from aesthetic_jax.data.prompts import CRITERIA
from aesthetic_jax.data.records import Record
from aesthetic_jax.errors import UserError

_SIDE, _FRAME, _GAP, _MARGIN = 176, 5, 10, 24  # pixels
_LABELS, _CAPTION, _HEADING = 170, 22, 56
_PAPER, _INK, _FAINT, _GREY = (250, 250, 248), (30, 30, 34), (115, 115, 120), (150, 150, 155)
_PASS, _FAIL = (28, 140, 62), (200, 38, 38)
_OUTER = _SIDE + 2 * _FRAME
_Colour = tuple[int, int, int]
_Number = int | float


def choose_samples(
    dimensions: Int[np.ndarray, " n"], number: int, seed: int
) -> Int[np.ndarray, " k"]:
    """Draws up to `number` samples, spread evenly over the dimensions.

    Args:
        dimensions: each sample's dimension, as an index into DIMENSIONS.
        number: number of samples to draw.
        seed: seed of the draw.

    Returns:
        Indices of the samples, ordered by dimension and then by index.
    """
    order = np.random.default_rng(seed).permutation(len(dimensions))
    rank = np.zeros(len(order), np.int64)  # rank among the samples of the same dimension
    for dimension in range(len(DIMENSIONS)):
        members = dimensions[order] == dimension
        rank[members] = np.arange(members.sum())
    drawn = order[np.argsort(rank, kind="stable")[:number]]
    return drawn[np.lexsort((drawn, dimensions[drawn]))]


def draw_contact_sheet(samples: Sequence[tuple[str, Record]]) -> Image.Image:
    """Draws one row per sample, under a heading per dimension.

    Candidates that pass have a green frame, the others a red one.

    Args:
        samples: (split, record), ordered by dimension.
    """
    columns = max((len(record.images) for _, record in samples), default=2)
    row_height = _OUTER + _CAPTION + _GAP
    headings = sum(
        i == 0 or samples[i - 1][1].dimension != record.dimension
        for i, (_, record) in enumerate(samples)
    )
    width = 2 * _MARGIN + _LABELS + columns * (_OUTER + _GAP) - _GAP
    height = 2 * _MARGIN + headings * _HEADING + len(samples) * row_height
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, y, dimension = ImageDraw.Draw(sheet), _MARGIN, None
    for split, record in samples:
        if record.dimension != dimension:
            dimension = record.dimension
            _draw_heading(draw, y, dimension, width)
            y += _HEADING
        _draw_labels(draw, y, split, record)
        _draw_images(sheet, draw, y, record)
        y += row_height
    return sheet


def _draw_heading(draw: ImageDraw.ImageDraw, y: int, dimension: str, width: int) -> None:
    title, top = dimension.replace("_", " "), y + _HEADING - 46
    _write(draw, (_MARGIN, top), title, 20, _INK, width)
    x = _MARGIN + _font(20).getlength(title) + 14
    question = f"Which of them {CRITERIA[dimension]}?"
    _write(draw, (x, top + 4), question, 15, _FAINT, width - x - _MARGIN)


def _draw_labels(draw: ImageDraw.ImageDraw, y: int, split: str, record: Record) -> None:
    answer = format_answer(record.answer).replace(",", ", ")
    lines = [(record.id, 17, _INK), (split, 14, _FAINT), (f"answer: {answer}", 15, _INK)]
    if record.question is not None:
        lines.append(("asks a question of its own", 12, _FAINT))
    if record.reasoning is None:
        lines.append(("no reasoning", 12, _FAINT))
    top = y + 6
    for text, size, colour in lines:
        _write(draw, (_MARGIN, top), text, size, colour, _LABELS - _GAP)
        top += size + 8


def _draw_images(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, record: Record) -> None:
    for position, data in enumerate(record.images):
        role = image_role(position)
        if position == 0:
            frame, colour, caption = _GREY, _FAINT, role
        elif role in record.answer:
            frame, colour, caption = _PASS, _PASS, f"{role} passes"
        else:
            frame, colour, caption = _FAIL, _FAIL, f"{role} fails"
        x = _MARGIN + _LABELS + position * (_OUTER + _GAP)
        draw.rectangle((x, y, x + _OUTER - 1, y + _OUTER - 1), frame)
        sheet.paste(_thumbnail(data), (x + _FRAME, y + _FRAME))
        _write(draw, (x + 2, y + _OUTER + 2), caption, 14, colour, _SIDE)


def _thumbnail(data: bytes) -> Image.Image:
    """The whole image, centred in a square; a cross where it can't be decoded."""
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
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    square.paste(image, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return square


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # pyright: ignore[reportReturnType]


def _write(
    draw: ImageDraw.ImageDraw,
    position: tuple[_Number, _Number],
    text: str,
    size: int,
    colour: _Colour,
    width: _Number,
) -> None:
    """Writes one line of text, shortened to a width in pixels."""
    font = _font(size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    draw.text(position, text, colour, font)
