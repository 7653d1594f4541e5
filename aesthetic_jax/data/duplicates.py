"""What a data set holds more than once, and what its splits share: equal files, near-same images, equal ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from aesthetic_jax.data.manifest import SPLITS
from aesthetic_jax.data.perceptual_hash import DISTANCE, group_images
from aesthetic_jax.data.statistics import Survey


def find_duplicates(data: Survey, distance: int = DISTANCE) -> tuple[dict[str, Any], dict[str, Any]]:
    """Duplicates inside a data set and leakage between its splits, as JSON. Groups are lists of names, the largest first.

    Args:
        distance: bits in which the hashes of near-same images may differ.

    Returns:
        Duplicates: `distance`; `distinct_files`; `distinct_images` (groups of near-same ones); `shared_files`, `shared_images`
        (images whose file, or a near-same image, another sample holds too); `groups` (near-same images of several samples);
        `within_samples` (near-same images of one sample); `contradictions` (candidates of equal file, original and dimension of
        which some pass and some fail).
        Leakage: `ids` (samples of one id in several splits); `originals` and `images` (near-same originals, or images of any
        role, in several splits), each {"groups", "samples": {split: samples that have part in it}}.
    """
    places = np.flatnonzero(data.images["format"] >= 0)
    images = data.images[places]
    sample, split = images["sample"], data.samples["split"][images["sample"]]
    label = group_images(images["hash"], images["colours"], distance)
    _, file = np.unique(images["file"], return_inverse=True)

    def named(groups: list[np.ndarray]) -> list[list[str]]:
        return [[data.image_name(places[i]) for i in group] for group in groups]

    shared = _groups(label, sample)
    inside = _groups(label * len(data.samples) + sample, np.arange(len(sample)))
    duplicates = {
        "distance": distance,
        "distinct_files": len(np.unique(file)),
        "distinct_images": len(np.unique(label)),
        "shared_files": sum(map(len, _groups(file, sample))),
        "shared_images": sum(map(len, shared)),
        "groups": named(shared),
        "within_samples": named(inside),
        "contradictions": [[data.image_name(i) for i in group] for group in _contradictions(data)],
    }
    original = np.flatnonzero(images["place"] == 0)
    leaks = {
        "originals": [original[group] for group in _groups(label[original], split[original])],
        "images": _groups(label, split),
    }
    _, number = np.unique(np.array(data.ids, dtype=np.str_), return_inverse=True)
    leakage = {"ids": [[data.sample_name(i) for i in group] for group in _groups(number, data.samples["split"])]}
    for role, groups in leaks.items():
        affected = np.unique(sample[np.concatenate(groups)] if groups else [])
        splits = data.samples["split"][affected.astype(np.int64)]
        counts = {name: int((splits == i).sum()) for i, name in enumerate(SPLITS) if (data.samples["split"] == i).any()}
        leakage[role] = {"groups": named(groups), "samples": counts}
    return duplicates, leakage


def _groups(label: Int[np.ndarray, " n"], owner: Sequence[int]) -> list[np.ndarray]:
    """Places of equal label that have two or more owners; the largest group first, then the earliest."""
    order = np.lexsort((owner, label))
    label, owner = label[order], np.asarray(owner)[order]
    changes = np.flatnonzero(label[1:] != label[:-1]) + 1
    starts, ends = np.r_[0, changes][: len(label)], np.r_[changes, len(label)][: len(label)]
    several = owner[starts] != owner[ends - 1]
    groups = [np.sort(order[start:end]) for start, end in zip(starts[several], ends[several], strict=True)]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def _contradictions(data: Survey) -> list[np.ndarray]:
    """Candidates shown under one original and asked about in one dimension that pass in one sample and fail in another."""
    images, samples = data.images, data.samples
    original = np.zeros(len(samples), np.uint64)
    first = images["place"] == 0
    original[images["sample"][first]] = images["file"][first]
    asked = np.flatnonzero(~first & ~samples["question"][images["sample"]])
    sample = images["sample"][asked]
    keys = np.stack([original[sample], images["file"][asked], samples["dimension"][sample].astype(np.uint64)], axis=1)
    _, question = np.unique(keys.view("V24"), return_inverse=True)
    passes = samples["answer"][sample] >> (images["place"][asked].astype(np.uint8) - 1) & 1
    return [asked[group] for group in _groups(question.ravel(), passes)]
