"""What parity.py asks both sides: samples, completions, rewards and loss cases, the same from the same seed, in numpy.

Shape letters are those of the package: B prompts, G completions per prompt, T completion tokens, V vocabulary.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from aesthetic_jax.errors import UserError

# Sections of the comparison, each computed on its own and kept in SECTION.npz.
INFERENCE = ("images", "prompts", "forward", "logprobs", "bfloat16", "greedy", "advantages", "losses", "export")
TRAINING = ("sft", "grpo", "sft_run", "grpo_run")

TILE_SIZE = 448  # of the image preprocessing row, whatever the model's
PREPROCESSED = ((640, 480), (480, 640), (1000, 1000), (300, 200), (448, 448))  # pixels, width and height
MAX_TILES_PREPROCESSED = 6

GROUP, COMPLETION = 4, 8  # G and the most tokens T of a completion
TEMPERATURE, BETA, LOSS_TYPE = 0.9, 0.04, "dapo"
SFT_BATCH, SFT_SAMPLES, MICRO_BATCHES = 4, 8, 2
GRPO_BATCH, GRPO_SAMPLES, UPDATES_PER_ROLLOUT = 2, 4, 2  # prompts of a rollout, prompts in all
STEPS = 20  # optimiser updates of a trajectory
OPTIMIZER = dict(learning_rate=1e-3, weight_decay=0.1, b1=0.9, b2=0.95, epsilon=1e-8, clip_norm=1.0)
GRPO_LEARNING_RATE = 3e-4

# Settings of policy_loss, in TRL's names and ours alike.
LOSSES = {
    "grpo": dict(loss_type="grpo"),
    "bnpo": dict(loss_type="bnpo"),
    "dr_grpo": dict(loss_type="dr_grpo"),
    "dapo": dict(loss_type="dapo"),
    "cispo": dict(loss_type="cispo", epsilon_high=1.2),
    "sapo": dict(loss_type="sapo"),
    "dapo, sequence-level ratio, KL": dict(
        loss_type="dapo", importance_sampling_level="sequence", epsilon=0.05, epsilon_high=0.06, beta=0.04
    ),
    "sapo, sequence-level ratio": dict(loss_type="sapo", importance_sampling_level="sequence"),
    "dapo, delta 1.3, epsilon_high 0.28": dict(loss_type="dapo", delta=1.3, epsilon_high=0.28),
    "grpo, KL with bias correction": dict(loss_type="grpo", beta=0.1),
    "grpo, KL without bias correction": dict(loss_type="grpo", beta=0.1, use_bias_correction_kl=False),
}
SCALES = ("group", "batch", "none")


class Sample(NamedTuple):
    """One question on some images."""

    question: str
    images: tuple[Image.Image, ...]
    completion: str


class Amount(NamedTuple):
    """How much of everything a size computes."""

    prompts: int  # of the forward pass and the log-probabilities
    group: int  # completions per prompt there
    greedy_prompts: int
    greedy_tokens: int
    max_tiles: int  # per image; a thumbnail comes on top of several
    max_images: int


@dataclasses.dataclass(frozen=True)
class Work:
    """A folder that the two sides exchange arrays through.

    Attributes:
        folder: holds torch/SECTION.npz and ours/SECTION.npz.
        model: directory of the checkpoint that both sides open.
        size: "tiny", "2b" or the checkpoint's own directory.
    """

    folder: Path
    model: Path
    size: str

    @property
    def amount(self) -> Amount:
        """What this size can afford: a full-size prompt takes two CPU cores about a minute."""
        return Amount(4, GROUP, 20, 64, 2, 3) if self.size == "tiny" else Amount(2, 2, 2, 12, 2, 2)

    @property
    def sections(self) -> tuple[str, ...]:
        """What is compared at this size, in the order of computing; the import comes first, into memory still untouched."""
        return INFERENCE + TRAINING if self.size == "tiny" else ("load", *INFERENCE)

    @property
    def config(self) -> dict:
        """The checkpoint's config.json."""
        return json.loads((self.model / "config.json").read_text())

    @property
    def tile_size(self) -> int:
        """Side of the model's tiles in pixels."""
        side = self.config["vision_config"]["image_size"]
        return side if isinstance(side, int) else side[0]

    def save(self, side: str, section: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes one section of one side."""
        (self.folder / side).mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / side / f"{section}.npz", **arrays)

    def has(self, side: str, section: str) -> bool:
        """Whether one section of one side is there."""
        return (self.folder / side / f"{section}.npz").exists()

    def load(self, side: str, section: str) -> dict[str, np.ndarray]:
        """Reads one section of one side."""
        with np.load(self.folder / side / f"{section}.npz", allow_pickle=False) as arrays:
            return dict(arrays)


def open_work(folder: str, size: str) -> Work:
    """The work folder of a size.

    Raises:
        UserError: the size is a directory that transformers can't open as InternVL.
    """
    if size in ("tiny", "2b"):
        return Work(Path(folder), Path(folder) / "model", size)
    config = Path(size) / "config.json"
    if not config.is_file():
        raise UserError(
            f"--size: {size} is neither tiny nor 2b and holds no config.json; name a checkpoint's directory"
        )
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except ValueError as error:
        raise UserError(f"--size: {config} is no JSON ({error}); copy the checkpoint's file again") from None
    if kind != "internvl":
        raise UserError(
            f"--size: {config} has model_type {kind!r}, which transformers opens as something else than its InternVL; "
            "name a checkpoint in the -hf layout (aesthetic-jax convert --to_hf writes it)"
        )
    if not any((Path(size) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"--size: {size} holds no tokenizer.json and no vocab.json; copy the tokenizer's files there")
    return Work(Path(folder), Path(size), size)


def picture(width: int, height: int, seed: int) -> Image.Image:
    """An RGB image with large shapes and noise, so that wrong resizing and wrong order both show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(-3, 3, (3, 3))]
    noise = rng.normal(scale=20, size=(height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, -1) + noise).clip(0, 255).astype(np.uint8))


def preprocessed_images() -> list[Image.Image]:
    """Images of the preprocessing row."""
    return [picture(*size, seed=seed) for seed, size in enumerate(PREPROCESSED)]


def samples(work: Work, count: int, seed: int) -> list[Sample]:
    """Questions of ragged lengths on 1 to max_images images, most of which fill several tiles."""
    rng = np.random.default_rng(seed)
    words = "does the cap keep its shape colour and label while its shadow falls left of it".split()
    shapes = ((2.1, 1.0), (1.0, 1.0), (0.9, 2.2), (1.3, 1.2))  # in tiles
    drawn = []
    for number in range(count):
        images = []
        for _ in range(1 + number % work.amount.max_images):
            width, height = shapes[rng.integers(len(shapes))]
            side = work.tile_size
            images.append(picture(int(width * side), int(height * side), seed=int(rng.integers(2**31))))
        question = " ".join(rng.choice(words, rng.integers(1, 8))) + "?"
        completion = " ".join(rng.choice(words, rng.integers(1, 4)))
        drawn.append(Sample(question, tuple(images), f"<think>{completion}.</think><answer>A</answer>"))
    return drawn


def completions(rows: int, end: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Completions of ragged lengths; the longest are cut off, the others end with the end token.

    Args:
        rows: B * G.
        end: id of the end token.

    Returns:
        Token ids and mask, each [B * G, T]; ids are bytes' tokens, never special ones.
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
    """Rewards [B, G] of rollout `number`, spread within every group: multiples of 0.1, as DPA's are."""
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
    """Flat indices of the valid positions whose logits are compared: all, or evenly drawn ones if they fill over 256 MB.

    Args:
        mask: [B, S], non-zero at tokens.
    """
    valid = np.flatnonzero(np.asarray(mask).reshape(-1))
    most = max(1, 2**28 // (4 * vocab_size))
    return valid if len(valid) <= most else valid[np.linspace(0, len(valid) - 1, most).astype(int)]


def text_array(texts: list[str]) -> np.ndarray:
    """Strings as their UTF-8 bytes, zero between them."""
    return np.frombuffer("\0".join(texts).encode(), np.uint8)
