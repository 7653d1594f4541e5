"""Renders synthetic samples: images and manifest.jsonl. The same seed gives the same bytes, whatever the number of workers.

aesthetic-jax synthesize --out=DIR --num=N --seed=S --image_size=PX
"""

import functools
import multiprocessing
import os

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", None, "new folder for images/ and manifest.jsonl", flag_values=FLAGS)
flags.DEFINE_integer("num", 1000, "samples over all splits; each is five images", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of everything that is random", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("image_size", 448, "side of the square images in pixels", flag_values=FLAGS)
flags.DEFINE_list("splits", ["0.8", "0.1", "0.1"], "shares of train, validation and test", flag_values=FLAGS)
flags.DEFINE_list("strength", ["0.3", "1.0"], "range that the strength of flaws is drawn from", flag_values=FLAGS)
flags.DEFINE_float(
    "thorough",
    0.0,
    "share of chains of thought that tell all there is to see of every image",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_string("products", None, "folder of RGBA cut-outs in place of drawn products", flag_values=FLAGS)
flags.DEFINE_string("backgrounds", None, "folder of photos in place of wall and table", flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "processes", lower_bound=1, flag_values=FLAGS)

_NAMES = ("original", "a", "b", "c", "d")


def _numbers(name: str, words: list[str], count: int) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not all(0 <= value <= 1 for value in values):
        raise UserError(f"--{name}={','.join(words)}: give {count} numbers between 0 and 1, separated by commas")
    return values


def _load_folder(flag: str, folder: str | None, read) -> list:
    if folder is None:
        return []

    from etils import epath

    files = sorted(epath.Path(folder).iterdir()) if epath.Path(folder).is_dir() else []
    images = [read(str(file)) for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]
    if not images:
        raise UserError(f"--{flag}={folder}: holds no PNG, JPEG or WebP images; name a folder that does")
    return images


def _write(folder: str, settings: dict, number: int):
    """Renders sample `number` into its folder; returns (dimension, answer, reasoning)."""
    import pathlib

    from aesthetic_jax.data.scenes.sample import make_sample

    sample = make_sample(number=number, **settings)
    target = pathlib.Path(folder) / "images" / f"{number + 1:06d}"
    target.mkdir()
    for name, image in zip(_NAMES, sample.images, strict=True):
        (target / f"{name}.jpg").write_bytes(image)
    return sample.dimension, sample.answer, sample.reasoning


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    out = require(arguments, "out")
    if arguments.num < 1:
        raise UserError(f"--num={arguments.num}: give at least 1")
    if not 32 <= arguments.image_size <= 4096:
        raise UserError(f"--image_size={arguments.image_size}: give 32 to 4096 pixels")
    shares = _numbers("splits", arguments.splits, 3)
    low, high = _numbers("strength", arguments.strength, 2)
    if abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--splits={','.join(arguments.splits)}: the shares must add up to 1")
    if not 0 < low <= high:
        raise UserError(f"--strength={low:g},{high:g}: give 0 < low <= high")

    import pathlib
    import shutil

    import numpy as np
    from tqdm import tqdm

    from aesthetic_jax.data.manifest import SPLITS, Sample, write_manifest
    from aesthetic_jax.data.scenes.products import read_cutout, read_photo

    target = pathlib.Path(out)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{out}: is not empty; choose a new folder")
    settings = {
        "seed": arguments.seed,
        "size": arguments.image_size,
        "strength": (low, high),
        "thorough": arguments.thorough,
        "cutouts": _load_folder("products", arguments.products, read_cutout),
        "backdrops": _load_folder("backgrounds", arguments.backgrounds, read_photo),
    }
    partial = target.with_name(target.name + ".partial")  # renamed once everything is there
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    # Fresh processes: a fork of one with threads may hang.
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        rendered = pool.imap(functools.partial(_write, str(partial), settings), range(arguments.num), chunksize=16)
        facts = list(tqdm(rendered, total=arguments.num, desc="rendering", unit="sample", disable=None))

    # Counts are exact, and which sample is in which split follows from nothing else about it.
    rng = np.random.default_rng((arguments.seed, 1 << 20))
    bounds = np.round(np.cumsum(shares) * arguments.num).astype(int)
    split_of = np.searchsorted(bounds, rng.permutation(arguments.num), side="right")
    samples = []
    for number, (dimension, answer, reasoning) in enumerate(facts):
        name = f"{number + 1:06d}"
        paths = [f"images/{name}/{image}.jpg" for image in _NAMES]
        split = SPLITS[split_of[number]]
        samples.append(Sample(name, split, dimension, paths[0], tuple(paths[1:]), answer, reasoning))
    write_manifest(samples, str(partial / "manifest.jsonl"))
    if target.exists():
        target.rmdir()
    partial.rename(target)
    print(target / "manifest.jsonl")
