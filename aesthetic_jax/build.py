"""Turns a manifest into a TFDS data set (ArrayRecord files), after decoding every image once to be sure.

aesthetic-jax build --manifest=FILE --out=DIR
"""

import functools
import multiprocessing
import os

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("manifest", None, "manifest.jsonl; its images lie relative to it", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for the data set", flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "processes that check images", lower_bound=1, flag_values=FLAGS)


def _check(folder, image: str) -> str | None:
    """What is wrong with one image, None if it decodes."""
    from etils import epath

    from aesthetic_jax.data.images import decode_image

    path = epath.Path(folder) / image
    try:
        decode_image(path.read_bytes(), str(path))
    except UserError as error:
        return str(error)
    return None


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    manifest, out = require(arguments, "manifest"), require(arguments, "out")

    from etils import epath
    from tqdm import tqdm

    from aesthetic_jax.data.manifest import read_manifest

    images = sorted({image for sample in read_manifest(manifest) for image in sample.images})
    folder = str(epath.Path(manifest).parent)
    # Fresh processes: a fork of one with threads may hang.
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        results = pool.imap(functools.partial(_check, folder), images, chunksize=64)
        faults = [x for x in tqdm(results, total=len(images), desc="checking", unit="image") if x]
    if faults:
        more = f" (and {len(faults) - 1} more images)" if len(faults) > 1 else ""
        raise UserError(faults[0] + more)

    import tensorflow_datasets as tfds

    from aesthetic_jax.data.screening.screening import Screening, fingerprint

    builder = Screening(manifest=manifest, data_dir=out)
    if (epath.Path(builder.data_dir) / "dataset_info.json").exists():
        if tfds.builder_from_directory(builder.data_dir).info.metadata["fingerprint"] != fingerprint(manifest):
            raise UserError(f"{out}: holds a data set made of something else; choose another --out or remove it")
        print(f"{out}: is already built of this manifest")
        return
    try:
        builder.download_and_prepare()
    finally:
        for leftover in epath.Path(builder.data_dir).parent.glob("*incomplete*"):
            leftover.rmtree()
    splits = ", ".join(f"{name} {split.num_examples}" for name, split in builder.info.splits.items())
    print(f"{builder.data_dir}: {splits}")
