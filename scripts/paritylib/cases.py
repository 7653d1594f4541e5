"""The inputs of both sides: samples, completions, rewards, loss settings, in numpy from seeds."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from paritylib.work import Work

# The row of image preprocessing, whatever the model's tiles: width and height in pixels.
TILE_SIZE = 448
PREPROCESSED = ((640, 480), (480, 640), (1000, 1000), (300, 200), (448, 448))
MAX_TILES_PREPROCESSED = 6

GROUP, COMPLETION = 4, 8  # G, and the longest completion T in tokens
TEMPERATURE, BETA, LOSS_TYPE = 0.9, 0.04, "dapo"
SFT_BATCH, SFT_SAMPLES, MICROBATCHES = 4, 8, 2
GRPO_BATCH, GRPO_SAMPLES, UPDATES_PER_ROLLOUT = 2, 4, 2  # prompts per rollout, in all, updates
STEPS = 20  # optimiser updates of a trajectory
OPTIMIZER = dict(learning_rate=1e-3, weight_decay=0.1, b1=0.9, b2=0.95, epsilon=1e-8, clip_norm=1.0)
GRPO_LEARNING_RATE = 3e-4

# Settings of policy_loss; TRL has the same names.
LOSSES = {
    "grpo": dict(loss_type="grpo"),
    "bnpo": dict(loss_type="bnpo"),
    "dr_grpo": dict(loss_type="dr_grpo"),
    "dapo": dict(loss_type="dapo"),
    "cispo": dict(loss_type="cispo", epsilon_high=1.2),
    "sapo": dict(loss_type="sapo"),
    "dapo, sequence-level ratio, KL": dict(
        loss_type="dapo",
        importance_sampling_level="sequence",
        epsilon=0.05,
        epsilon_high=0.06,
        beta=0.04,
    ),
    "sapo, sequence-level ratio": dict(loss_type="sapo", importance_sampling_level="sequence"),
    "dapo, delta 1.3, epsilon_high 0.28": dict(loss_type="dapo", delta=1.3, epsilon_high=0.28),
    "grpo, KL with bias correction": dict(loss_type="grpo", beta=0.1),
    "grpo, KL without bias correction": dict(
        loss_type="grpo", beta=0.1, use_bias_correction_kl=False
    ),
}
SCALES = ("group", "batch", "none")


class Sample(NamedTuple):
    """One question on some images."""

    question: str
    images: tuple[Image.Image, ...]
    completion: str


def picture(width: int, height: int, seed: int) -> Image.Image:
    """An RGB image of waves and noise: shows wrong resizing as well as wrong order."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    noise = rng.normal(scale=20, size=(height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def preprocessed_images() -> list[Image.Image]:
    """Images of the preprocessing row."""
    return [picture(*size, seed=seed) for seed, size in enumerate(PREPROCESSED)]


def samples(work: Work, count: int, seed: int) -> list[Sample]:
    """Questions of ragged lengths on 1 to max_images images, most of several tiles."""
    rng = np.random.default_rng(seed)
    words = "does the cap keep its shape colour and label while its shadow falls left of it".split()
    shapes = ((2.1, 1.0), (1.0, 1.0), (0.9, 2.2), (1.3, 1.2))  # in tiles
    drawn_samples = []
    for number in range(count):
        images = []
        for _ in range(1 + number % work.amount.max_images):
            width, height = shapes[rng.integers(len(shapes))]
            side = work.tile_size
            images.append(
                picture(int(width * side), int(height * side), seed=int(rng.integers(2**31)))
            )
        question = " ".join(rng.choice(words, rng.integers(1, 8))) + "?"
        completion = " ".join(rng.choice(words, rng.integers(1, 4)))
        completion = f"<think>{completion}.</think><answer>A</answer>"
        drawn_samples.append(Sample(question, tuple(images), completion))
    return drawn_samples


def completions(rows: int, end: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Completions of ragged lengths; the longest lack the end token, as if clipped.

    Args:
        rows: B * G.
        end: id of the end token.

    Returns:
        Token ids and mask, each [B * G, T]; ids are of bytes, never special tokens.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, COMPLETION + 1, rows)
    lengths[0] = COMPLETION
    ids = rng.integers(32, 250, (rows, COMPLETION))
    mask = np.arange(COMPLETION) < lengths[:, None]
    ended = lengths < COMPLETION
    ids[np.flatnonzero(ended), lengths[ended] - 1] = end
    return np.where(mask, ids, end), mask


def rewards(number: int) -> np.ndarray:
    """Rewards [B, G] of rollout `number`: multiples of 0.1, spread within each group."""
    rng = np.random.default_rng((7, number))
    drawn = rng.integers(0, 11, (GRPO_BATCH, GROUP)) / 10
    drawn[:, 0], drawn[:, 1] = 0.0, 1.0
    return drawn.astype(np.float32)


def loss_arrays() -> dict[str, np.ndarray]:
    """Log-probabilities of three models, ragged masks (one completion empty) and advantages."""
    rng = np.random.default_rng(0)
    shape = (2, GROUP, COMPLETION)
    logprobs = -rng.gamma(2.0, 0.5, shape)
    lengths = np.array([[8, 5, 3, 1], [8, 7, 0, 4]])
    return {
        "logprobs": logprobs.astype(np.float32),
        "old_logprobs": (logprobs + 0.3 * rng.normal(size=shape)).astype(np.float32),
        "ref_logprobs": (logprobs + 0.2 * rng.normal(size=shape)).astype(np.float32),
        "mask": np.arange(COMPLETION) < lengths[..., None],
        "advantages": np.array([[1.2, -0.7, 0.3, -0.8], [0.5, -1.1, 0.9, -0.3]], np.float32),
    }


def kept_positions(mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """Flat indices of the positions whose logits are compared.

    All valid ones, or as many evenly spaced ones as have 256 MiB of float32 logits.

    Args:
        mask: [B, S], non-zero at tokens.
        vocab_size: logits of a position.
    """
    valid = np.flatnonzero(np.asarray(mask).reshape(-1))
    most = max(1, 2**28 // (4 * vocab_size))
    return valid if len(valid) <= most else valid[np.linspace(0, len(valid) - 1, most).astype(int)]


def text_array(texts: list[str]) -> np.ndarray:
    """Strings as UTF-8 bytes, with a zero byte between two."""
    return np.frombuffer("\0".join(texts).encode(), np.uint8)
