"""Statistics of a surveyed data set."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from aesthetic_jax.data.answers import format_answer, mask_letters, option_letters, option_passes
from aesthetic_jax.data.images import FORMATS
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.survey import Survey

if TYPE_CHECKING:  # its module imports JAX
    from aesthetic_jax.data.pipeline import Preprocessor

MOST_SIZES = 20  # number of image sizes counted separately, the most common ones


def summarize(
    data: Survey, chosen: Bool[np.ndarray, " n"], preprocessor: "Preprocessor | None" = None
) -> dict[str, Any]:
    """Statistics of the chosen samples, as JSON.

    Args:
        data: the surveyed data set.
        chosen: which samples to count.
        preprocessor: its limits define what is too large; None: `too_large` is left out.

    Returns:
        samples: number of samples.
        dimensions, options, answers: {value: number of samples}; the last two sorted by number.
        passing: {letter: share of the samples with that option in which it passes}.
        reasoning: share of samples with reasoning.
        questions: share of samples with a question of their own.
        images, unreadable_images: number of images.
        formats: {format: number of images}.
        sizes: {WIDTHxHEIGHT: number of images}, the most common ones and "other".
        width, height, bytes: spread over images.
        tiles, prompt_tokens, completion_tokens: spread over samples.
        total_bytes: of all images.
        too_large: {"images", "prompt", "completion": samples that training would refuse}.

        A spread is {"count", "mean", "min", "p50", "p95", "max"}, or null if nothing was counted.
    """
    samples = data.samples[chosen]
    images = data.images[chosen[data.images["sample"]]]
    readable = images[images["format"] >= 0]
    options, answer = samples["options"], samples["answer"]
    letters = option_letters(int(options.max(initial=0)))
    summary = {
        "samples": len(samples),
        "dimensions": {
            name: int((samples["dimension"] == i).sum()) for i, name in enumerate(DIMENSIONS)
        },
        "options": _counts(options, str),
        "answers": _counts(answer, lambda mask: format_answer(mask_letters(mask))),
        "passing": {
            letter: float(np.mean(option_passes(answer[options > i], i)))
            for i, letter in enumerate(letters)
        },
        "reasoning": _share(samples["reasoning"]),
        "questions": _share(samples["question"]),
        "images": len(images),
        "unreadable_images": len(images) - len(readable),
        "formats": _counts(readable["format"], FORMATS.__getitem__),
        "sizes": _sizes(readable),
        "width": _spread(readable["width"]),
        "height": _spread(readable["height"]),
        "bytes": _spread(images["bytes"]),
        "total_bytes": int(images["bytes"].sum()),
    }
    counted = {
        name: samples[name][samples[name] >= 0]
        for name in ("tiles", "prompt_tokens", "completion_tokens")
    }
    summary |= {name: _spread(values) for name, values in counted.items()}
    if preprocessor is not None:
        limits = (
            ("images", options + 1, preprocessor.max_images),
            ("prompt", counted["prompt_tokens"], preprocessor.prompt_buckets[-1]),
            ("completion", counted["completion_tokens"], preprocessor.completion_buckets[-1]),
        )
        summary["too_large"] = {name: int((values > limit).sum()) for name, values, limit in limits}
    return summary


def _counts(values: np.ndarray, name: Callable[[int], str]) -> dict[str, int]:
    """{name of a value: how often it occurs}, the most common first."""
    found, counts = np.unique(values, return_counts=True)
    return {name(int(found[i])): int(counts[i]) for i in np.argsort(-counts, kind="stable")}


def _sizes(images: np.ndarray) -> dict[str, int]:
    counts = _counts(
        images["width"].astype(np.int64) << 32 | images["height"],
        lambda x: f"{x >> 32}x{x & 0xFFFFFFFF}",
    )
    if len(counts) <= MOST_SIZES:
        return counts
    common = dict(list(counts.items())[:MOST_SIZES])
    return common | {"other": len(images) - sum(common.values())}


def _share(values: Bool[np.ndarray, " n"]) -> float:
    return float(values.mean()) if len(values) else 0.0


def _spread(values: np.ndarray) -> dict[str, int | float] | None:
    if not len(values):
        return None
    median, high = np.percentile(values, (50, 95), method="inverted_cdf")
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "min": int(values.min()),
        "p50": int(median),
        "p95": int(high),
        "max": int(values.max()),
    }
