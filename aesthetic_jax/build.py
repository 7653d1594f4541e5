"""Turns a manifest into a TFDS data set (ArrayRecord files); decodes every image once to be sure.

aesthetic-jax build --manifest=FILE --out=DIR
"""

import contextlib
import io
import json
import os
import tempfile
from typing import Any

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("manifest", None, "manifest.jsonl; its images lie relative to it", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for the data set", flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "processes that check images", lower_bound=1, flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    manifest, out = require(arguments, "manifest"), require(arguments, "out")

    from etils import epath

    from aesthetic_jax.data.manifest import SPLITS, read_manifest

    samples = read_manifest(manifest)
    out = epath.Path(out).expanduser()
    version = out / "screening" / "1.0.0"
    settings = dict(folder=str(epath.Path(manifest).parent), samples=samples, workers=arguments.workers)
    counts = ", ".join(f"{split} {n}" for split in SPLITS if (n := sum(sample.split == split for sample in samples)))
    try:
        if version.exists():
            _check_same(version, **settings)
            print(f"{version}: holds this data set already; {counts}")
            return
        if "://" in str(out):  # ArrayRecord files are written to disks only
            with tempfile.TemporaryDirectory() as folder:
                _build(epath.Path(folder), settings)
                _upload(epath.Path(folder) / "screening" / "1.0.0", version)
        else:
            _build(out, settings)
    except OSError as error:
        raise UserError(
            f"{out}: can't be written ({error.strerror or error}); mend that or name another --out"
        ) from None
    print(f"{version}: {counts}")


def _check_same(version: Any, *, folder: str, samples: list, workers: int) -> None:
    """Compares what is there with the manifest's content.

    Raises:
        UserError: it is something else.
    """
    from tqdm import tqdm

    from aesthetic_jax.data.manifest import SPLITS
    from aesthetic_jax.data.screening.content import fingerprint, read_contents

    try:
        stored = json.loads((version / "metadata.json").read_text())["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{version}: holds no whole data set; remove it or name another --out") from None
    ordered = [sample for split in SPLITS for sample in samples if sample.split == split]
    contents = read_contents(folder, ordered, workers, decode=False)
    bar = tqdm(contents, total=len(samples), desc="comparing", unit="sample", disable=None)
    if fingerprint(content.digest for content in bar) != stored:
        raise UserError(f"{version}: holds a data set of other content; remove it or name another --out")


def _build(out: Any, settings: dict[str, Any]) -> None:
    """Builds under `out`; a failure leaves nothing of it."""
    from aesthetic_jax.data.screening.screening import Screening

    created = [folder for folder in (out / "screening", out) if not folder.exists()]
    try:
        # TFDS makes a folder for downloads, and prints what it does.
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
            Screening(data_dir=str(out), **settings).download_and_prepare(download_dir=downloads)
    except BaseException:
        # TFDS has removed its incomplete folder; what is left is empty.
        for folder in created:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    for leftover in (out / "screening").glob("incomplete.*"):  # of a build that was killed
        leftover.rmtree()


def _upload(source: Any, target: Any) -> None:
    """Copies a data set to an object store; dataset_info.json, which makes it one, goes last."""
    try:
        for file in sorted(source.iterdir(), key=lambda file: file.name == "dataset_info.json"):
            (target / file.name).write_bytes(file.read_bytes())
    except BaseException:
        target.rmtree(missing_ok=True)
        raise
