"""Renders synthetic samples: images, a manifest.jsonl, and scenes.jsonl with the images' facts.

aesthetic-jax synthesize --out=shop --num=500 --image_size=112
aesthetic-jax synthesize --out=own --products=cutouts --backgrounds=photos --splits=0.9,0.05,0.05

The same seed gives the same bytes, whatever the number of workers. An interrupted command leaves
nothing at --out.
"""

import functools
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", None, "new folder for images/ and manifest.jsonl", flag_values=FLAGS)
flags.DEFINE_integer("num", 1000, "samples over all splits, five images each", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of all randomness", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("image_size", 448, "side of the square images in pixels", flag_values=FLAGS)
flags.DEFINE_list(
    "splits", ["0.8", "0.1", "0.1"], "shares of train, validation and test", flag_values=FLAGS
)
flags.DEFINE_list(
    "strength", ["0.3", "1.0"], "range that the strength of flaws is drawn from", flag_values=FLAGS
)
flags.DEFINE_bool(
    "describe",
    False,
    "make descriptions: samples of one image and its description, to pretrain on",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "thorough",
    1.0,
    "share of chains of thought that describe every image in all dimensions",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "products", None, "folder of RGBA cut-outs to use as products", flag_values=FLAGS
)
flags.DEFINE_string("backgrounds", None, "folder of photos to use as backdrops", flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", os.cpu_count(), "processes that render", lower_bound=1, flag_values=FLAGS
)

_IMAGES = ("original", "a", "b", "c", "d")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: flags.FlagValues) -> None:
    """Renders into a folder beside --out, and renames it once it is complete."""
    out = require(arguments, "out")
    shares, settings = _check_flags(arguments)

    import shutil

    from aesthetic_jax.data.manifest import write_manifest

    target = pathlib.Path(out)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"--out={out}: is not empty, or not a folder; choose a new folder")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    splits = _assign_splits(arguments.seed, shares, arguments.num)
    make = "make_description" if arguments.describe else "make_sample"
    write = functools.partial(_write_sample, str(partial), make, settings)
    rendered = _render(write, splits, arguments.workers)
    write_manifest([sample for sample, _ in rendered], str(partial / "manifest.jsonl"))
    lines = "".join(json.dumps(line) + "\n" for _, line in rendered)
    (partial / "scenes.jsonl").write_text(lines)
    if target.exists():
        target.rmdir()
    partial.rename(target)
    print(target / "manifest.jsonl")


def _check_flags(arguments: flags.FlagValues) -> tuple[list[float], dict[str, Any]]:
    """The splits' shares, and the arguments of `make_sample` that all samples have in common."""
    if arguments.num < 1:
        raise UserError(f"--num={arguments.num}: give at least 1")
    if not 32 <= arguments.image_size <= 4096:
        raise UserError(f"--image_size={arguments.image_size}: give 32 to 4096 pixels")
    shares = _numbers("splits", arguments.splits, 3)
    low, high = _numbers("strength", arguments.strength, 2)
    if abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--splits={','.join(arguments.splits)}: give shares that add up to 1")
    if not 0 < low <= high:
        raise UserError(f"--strength={low:g},{high:g}: give LOW,HIGH with 0 < LOW <= HIGH")

    from aesthetic_jax.data.scenes.products import read_cutout, read_photo

    settings = {
        "seed": arguments.seed,
        "size": arguments.image_size,
        "strength": (low, high),
    }
    if arguments.describe:
        for flag in ("products", "backgrounds"):
            if arguments[flag].value:
                raise UserError(f"--{flag}: doesn't go with --describe; leave one of the two out")
        return shares, settings
    return shares, settings | {
        "thorough": arguments.thorough,
        "cutouts": _read_folder("products", arguments.products, read_cutout),
        "backdrops": _read_folder("backgrounds", arguments.backgrounds, read_photo),
    }


def _numbers(flag: str, words: list[str], count: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not all(0 <= value <= 1 for value in values):
        raise UserError(
            f"--{flag}={','.join(words)}: give {count} numbers between 0 and 1, separated by commas"
        )
    return values


def _read_folder(flag: str, folder: str | None, read: Callable[[str], Any]) -> list[Any]:
    """All images of a folder in the order of their names; none without a folder."""
    if folder is None:
        return []

    from etils import epath

    files = sorted(epath.Path(folder).iterdir()) if epath.Path(folder).is_dir() else []
    images = [read(str(file)) for file in files if file.suffix.lower() in _SUFFIXES]
    if not images:
        raise UserError(
            f"--{flag}={folder}: has no PNG, JPEG or WebP images; choose another folder"
        )
    return images


def _assign_splits(seed: int, shares: Sequence[float], num: int) -> list[str]:
    """Each sample's split: exact shares, independent of the samples' content."""
    import numpy as np

    from aesthetic_jax.data.manifest import SPLITS

    rng = np.random.default_rng((seed, 1 << 20))
    bounds = np.round(np.cumsum(shares) * num).astype(int)
    return [SPLITS[i] for i in np.searchsorted(bounds, rng.permutation(num), side="right")]


def _render(write: Callable, splits: list[str], workers: int) -> list:
    """Calls `write` for each numbered entry of `splits`, in processes; returns what it returned."""
    from tqdm import tqdm

    # Fresh processes: a fork of a process with threads may hang.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        samples = pool.imap(write, enumerate(splits), chunksize=16)
        return list(tqdm(samples, total=len(splits), desc="rendering", unit="sample", disable=None))


def _write_sample(
    folder: str, make: str, settings: dict[str, Any], numbered_split: tuple[int, str]
) -> tuple[Any, dict[str, Any]]:
    """Renders sample (number, split) and writes its images; returns its Sample and its facts.

    Args:
        folder: the data set's folder.
        make: name of the function in `sample.py` that renders.
        settings: its arguments that all samples have in common.
        numbered_split: the sample's number and split.
    """
    from aesthetic_jax.data.manifest import Sample
    from aesthetic_jax.data.scenes import sample
    from aesthetic_jax.data.scenes.facts import scene_line

    number, split = numbered_split
    name = f"{number + 1:06d}"
    rendered = getattr(sample, make)(number=number, **settings)
    (pathlib.Path(folder) / "images" / name).mkdir()
    paths = [f"images/{name}/{image}.jpg" for image in _IMAGES[: len(rendered.images)]]
    for path, image in zip(paths, rendered.images, strict=True):
        (pathlib.Path(folder) / path).write_bytes(image)
    return Sample(
        id=name,
        split=split,
        dimension=rendered.dimension,
        original=paths[0],
        candidates=tuple(paths[1:]),
        answer=rendered.answer,
        reasoning=rendered.reasoning,
        question=rendered.question,
    ), scene_line(name, rendered.facts)
