"""Sizes of the benchmarked work: the model and the shapes of its inputs."""

import dataclasses
from typing import NamedTuple

from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig


class Buckets(NamedTuple):
    """Lengths in tokens that prompts and completions are padded to, ascending."""

    prompt_buckets: tuple[int, ...]
    completion_buckets: tuple[int, ...]


class Size(NamedTuple):
    """A model and the shapes of the work that measures it."""

    config: InternVLConfig
    images: int  # of one tile each, per sample
    text: int  # prompt tokens besides the image tokens
    completion: int  # tokens of a completion in grpo_update and rollout
    lengths: tuple[int, int]  # shortest and longest completion of sft_step, in tokens
    buckets: Buckets  # of sft_step

    @property
    def prompt(self) -> int:
        """Tokens of a prompt in grpo_update and rollout, image tokens included."""
        return self.images * self.config.tokens_per_tile + self.text


class Options(NamedTuple):
    """How a benchmark runs, whatever its size."""

    group: int  # completions per prompt
    microbatches: int  # of sft_step
    reps: int  # timed calls; the reported time is their median
    profile: str | None  # folder for a trace of one more call; None: no trace


SIZES = {
    "bench": Size(
        InternVLConfig(
            VisionConfig(width=256, layers=6, heads=4, mlp_width=1024, image_size=224),
            TextConfig(width=512, layers=8, heads=8, kv_heads=2, mlp_width=1536, vocab_size=8192),
            image_token=3,
            remat="dots",  # the fastest choice on two cores
        ),
        images=5,
        text=80,
        completion=96,
        lengths=(24, 160),
        buckets=Buckets((480,), tuple(range(32, 161, 32))),
    ),
    "2b": Size(
        dataclasses.replace(PRESETS["internvl3_2b"], dtype="bfloat16"),
        images=5,
        text=120,
        completion=256,
        lengths=(64, 512),
        buckets=Buckets((1536,), (128, 256, 384, 512)),
    ),
}


def choose_size(name: str, remat: str | None = None, vocabulary: int | None = None) -> Size:
    """A size by its name, with another remat policy or vocabulary where given."""
    size = SIZES[name]
    config = size.config
    if remat:
        config = dataclasses.replace(config, remat=remat)
    if vocabulary:
        text = dataclasses.replace(config.text, vocab_size=vocabulary)
        config = dataclasses.replace(config, text=text)
    return size._replace(config=config)
