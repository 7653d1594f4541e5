"""Duplicates in a data set and leakage between its splits: equal files, near-same images, ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from aesthetic_jax.data.answers import option_passes
from aesthetic_jax.data.manifest import SPLITS
from aesthetic_jax.data.perceptual_hash import DISTANCE, group_images
from aesthetic_jax.data.survey import Survey


def find_duplicates(
    data: Survey, distance: int = DISTANCE
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Duplicates inside a data set and leakage between its splits, as JSON.

    Args:
        data: the surveyed data set.
        distance: largest number of differing bits between hashes of near-same images.

    Returns:
        (duplicates, leakage). A group is a list of names; the largest group comes first.

        Duplicates:
            distance: as given.
            distinct_files: number of different files.
            distinct_images: number of images, near-same ones counted once.
            shared_files, shared_images: images whose file, or a near-same image, is also in another
                sample.
            groups: near-same images of several samples.
            within_samples: near-same images of one sample.
            contradictions: candidates with equal file, original and dimension, some of which pass
                and some fail.

        Leakage:
            ids: samples with one id in several splits.
            originals, images: near-same originals, or images of any role, in several splits, as
                {"groups", "samples": {split: number of samples with such an image}}.
    """
    readable = np.flatnonzero(data.images["format"] >= 0)
    images = data.images[readable]
    sample, split = images["sample"], data.samples["split"][images["sample"]]
    label = group_images(images["hash"], images["colours"], distance)
    _, file = np.unique(images["file"], return_inverse=True)

    def names(groups: list[np.ndarray]) -> list[list[str]]:
        return [[data.image_name(readable[i]) for i in group] for group in groups]

    shared = _groups(label, sample)
    inside = _groups(label * len(data.samples) + sample, np.arange(len(sample)))
    duplicates = {
        "distance": distance,
        "distinct_files": len(np.unique(file)),
        "distinct_images": len(np.unique(label)),
        "shared_files": sum(map(len, _groups(file, sample))),
        "shared_images": sum(map(len, shared)),
        "groups": names(shared),
        "within_samples": names(inside),
        "contradictions": [[data.image_name(i) for i in group] for group in _contradictions(data)],
    }
    original = np.flatnonzero(images["position"] == 0)
    leaks = {
        "originals": [original[group] for group in _groups(label[original], split[original])],
        "images": _groups(label, split),
    }
    leakage: dict[str, Any] = {"ids": _shared_ids(data)}
    for role, groups in leaks.items():
        affected = np.unique(sample[np.concatenate(groups)]) if groups else np.zeros(0, np.int64)
        counts = _count_splits(data, data.samples["split"][affected])
        leakage[role] = {"groups": names(groups), "samples": counts}
    return duplicates, leakage


def _shared_ids(data: Survey) -> list[list[str]]:
    """Names of samples with one id in several splits, in groups."""
    _, number = np.unique(np.array(data.ids, dtype=np.str_), return_inverse=True)
    groups = _groups(number, data.samples["split"])
    return [[data.sample_name(i) for i in group] for group in groups]


def _count_splits(data: Survey, chosen: Int[np.ndarray, " k"]) -> dict[str, int]:
    """How often each of a data set's splits is among the chosen ones."""
    return {
        name: int((chosen == i).sum())
        for i, name in enumerate(SPLITS)
        if (data.samples["split"] == i).any()
    }


def _groups(label: Int[np.ndarray, " n"], owner: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Indices with equal label that have two or more owners; largest group first, then earliest."""
    owner = np.asarray(owner)
    order = np.lexsort((owner, label))
    label, owner = label[order], owner[order]
    changes = np.flatnonzero(label[1:] != label[:-1]) + 1
    starts, ends = np.r_[0, changes][: len(label)], np.r_[changes, len(label)][: len(label)]
    several = owner[starts] != owner[ends - 1]
    groups = [
        np.sort(order[start:end]) for start, end in zip(starts[several], ends[several], strict=True)
    ]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def _contradictions(data: Survey) -> list[np.ndarray]:
    """Candidates with equal file, original and dimension that pass in one sample, fail in another.

    Samples with a question of their own are left out.
    """
    images, samples = data.images, data.samples
    original = np.zeros(len(samples), np.uint64)
    is_original = images["position"] == 0
    original[images["sample"][is_original]] = images["file"][is_original]
    asked = np.flatnonzero(~is_original & ~samples["question"][images["sample"]])
    sample = images["sample"][asked]
    keys = np.stack(
        [original[sample], images["file"][asked], samples["dimension"][sample].astype(np.uint64)],
        axis=1,
    )
    _, question = np.unique(keys.view("V24"), return_inverse=True)
    option = images["position"][asked].astype(np.uint8) - 1
    passes = option_passes(samples["answer"][sample], option)
    return [asked[group] for group in _groups(question.ravel(), passes)]
