"""The work folder, through which both sides exchange arrays, and the work of each size."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aesthetic_jax.errors import UserError

# Sections of the comparison; each is computed on its own and kept in SECTION.npz.
INFERENCE = (
    "images",
    "prompts",
    "forward",
    "logprobs",
    "bfloat16",
    "greedy",
    "advantages",
    "losses",
    "export",
)
TRAINING = ("sft", "grpo", "sft_run", "grpo_run")


class Amount(NamedTuple):
    """How much a size computes."""

    prompts: int  # of the forward pass and the log-probabilities
    group: int  # completions per prompt of the log-probabilities
    greedy_prompts: int
    greedy_tokens: int
    max_tiles: int  # per image; two or more get a thumbnail besides
    max_images: int  # per prompt


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
        """The amount for this size; a full-size prompt takes two CPU cores about a minute."""
        return Amount(4, 4, 20, 64, 2, 3) if self.size == "tiny" else Amount(2, 2, 2, 12, 2, 2)

    @property
    def sections(self) -> tuple[str, ...]:
        """Sections of this size in order; `load` is first, as it measures memory."""
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

    def claim(self) -> None:
        """Makes the folder and writes its size there.

        Raises:
            UserError: the folder holds arrays of another size.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        owner = self.folder / "size"
        if owner.exists() and owner.read_text() != self.size:
            raise UserError(
                f"--work: {self.folder} holds arrays of size {owner.read_text()}; "
                "name another folder"
            )
        owner.write_text(self.size)

    def save(self, side: str, section: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes one section of one side, "torch" or "ours"."""
        (self.folder / side).mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / side / f"{section}.npz", **arrays)

    def has(self, side: str, section: str) -> bool:
        """Whether one section of one side exists."""
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
            f"--size: {size} is neither tiny nor 2b and holds no config.json; "
            "name a checkpoint's directory"
        )
    try:
        kind = json.loads(config.read_text()).get("model_type")
    except ValueError as error:
        raise UserError(
            f"--size: {config} is not JSON ({error}); copy the checkpoint's file again"
        ) from None
    if kind != "internvl":
        raise UserError(
            f"--size: {config} has model_type {kind!r}, and transformers' InternVL has 'internvl'; "
            "name a checkpoint in the -hf layout (aesthetic-jax convert --to_hf writes one)"
        )
    if not any((Path(size) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            f"--size: {size} has no tokenizer.json and no vocab.json; "
            "copy the tokenizer's files into it"
        )
    return Work(Path(folder), Path(size), size)
