"""Random prompts, tiles, lengths and JPEGs in numpy: the same for our side and for PyTorch's."""

import io
import itertools

import numpy as np
from PIL import Image

from benchlib.sizes import Size


def prompts(size: Size, text: list[int] | None = None) -> dict[str, np.ndarray]:
    """Random tiles and right-padded prompts.

    Args:
        size: size of the model and its images.
        text: text tokens of each of the B prompts; None: one prompt of size.text tokens.

    Returns:
        tiles [B, N, X, X, 3] uint8, prompt_ids [B, P] int32 and prompt_mask [B, P].
    """
    rng = np.random.default_rng(0)
    config = size.config
    image = [config.image_token] * config.tokens_per_tile
    rows = []
    for count in text or [size.text]:
        words = rng.integers(4, 250, count).tolist()
        spread = [words[4 * i : 4 * i + 4] + image for i in range(size.images)]
        rows.append(list(itertools.chain(*spread)) + words[4 * size.images :])
    length = max(map(len, rows))
    side = config.vision.image_size
    return dict(
        tiles=rng.integers(0, 255, (len(rows), size.images, side, side, 3), np.uint8),
        prompt_ids=np.array([row + [0] * (length - len(row)) for row in rows], np.int32),
        prompt_mask=np.arange(length) < np.array([[len(row)] for row in rows]),
    )


def sft_lengths(size: Size, samples: int = 16) -> tuple[list[int], list[int]]:
    """Lengths of sft_step's samples: prompt tokens besides the image tokens, completion tokens."""
    rng = np.random.default_rng(0)
    texts = rng.integers(size.text, 2 * size.text, samples)
    return texts.tolist(), rng.integers(*size.lengths, samples, endpoint=True).tolist()


def jpegs(count: int = 5, side: int = 1024) -> list[bytes]:
    """Photo-like JPEGs of `side` x `side` pixels: smooth shapes with some grain."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 4, (side, side, 3))
        photo = Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
        photo.save(file := io.BytesIO(), "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded
