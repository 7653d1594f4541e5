"""Input and result types of a training step, and its amount of work."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.training.flops import forward_flops
from aesthetic_jax.training.state import TrainState


class RowSizes(NamedTuple):
    """How large the rows of a batch are; gathered from all hosts, it decides the step's shapes."""

    tiles: Int[np.ndarray, " B"]  # image tiles
    prompt: Int[np.ndarray, " B"]  # prompt tokens, image tokens included
    completion: Int[np.ndarray, "B G"]  # tokens of each completion


class Work(NamedTuple):
    """The useful work of a step, without padding and rematerialisation."""

    tokens: int  # of prompts and completions, each once
    flops: float  # model FLOPs, see flops.py


class StepResult(NamedTuple):
    """The result of a step."""

    metrics: dict[str, Any]
    work: Work
    exact: Float[np.ndarray, " B"] | None = None  # share of exact answers per prompt; None in SFT


# (state, this host's rows of the batch, number of the step) -> (new state, result)
TrainStep = Callable[[TrainState, Batch, int], tuple[TrainState, StepResult]]


def row_sizes(
    architecture: InternVLConfig, batch: Batch, completion_mask: Bool[np.ndarray, "B G T"]
) -> RowSizes:
    """Sizes of this host's rows."""
    image_tokens = (batch.prompt_ids == architecture.image_token).sum(1)
    return RowSizes(
        tiles=image_tokens // architecture.tokens_per_tile,
        prompt=batch.prompt_mask.sum(1),
        completion=completion_mask.sum(2),
    )


def count_work(
    architecture: InternVLConfig, sizes: RowSizes, vision_passes: int, language_passes: int
) -> Work:
    """Work of a step on a batch; a backward pass counts as two forward passes.

    Args:
        vision_passes: the step's work on the vision tower, in forward passes.
        language_passes: the same for projector, language model and head.
    """
    forward = forward_flops(architecture, sizes.tiles.sum(), sizes.prompt, sizes.completion)
    flops = vision_passes * forward.vision + language_passes * forward.language
    return Work(int(sizes.prompt.sum() + sizes.completion.sum()), float(flops))
