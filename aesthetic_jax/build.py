"""Turns a manifest into a TFDS data set (ArrayRecord files).

aesthetic-jax build --manifest=shop/manifest.jsonl --out=shop/data
aesthetic-jax build --manifest=gs://BUCKET/manifest.jsonl --out=gs://BUCKET/data \\
  --beam_runner=DataflowRunner \\
  --beam_options=project=PROJECT,region=REGION,temp_location=gs://BUCKET/tmp

Every image is decoded once, to check it. A scenes.jsonl beside the manifest is checked and then
copied into the data set's folder, for `evaluate`. After an interruption, the same command keeps the
complete shards. Processes on this machine write the shards, or with --beam_runner the workers of
Apache Beam, which need this package and access to both paths.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from aesthetic_jax.data.dataset import Shard
    from aesthetic_jax.data.manifest import Sample

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "manifest", None, "manifest.jsonl, with image paths relative to it", flag_values=FLAGS
)
flags.DEFINE_string("out", None, "folder for the data set", flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", os.cpu_count(), "processes that write shards", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_float(
    "max_rejects",
    0.0,
    "share of samples that may be left out because an image can't be decoded; listed in"
    " rejects.jsonl",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "beam_runner",
    "",
    "runner of Apache Beam, such as DirectRunner or DataflowRunner",
    flag_values=FLAGS,
)
flags.DEFINE_list(
    "beam_options",
    [],
    "options of the runner, without --, such as direct_num_workers=2",
    flag_values=FLAGS,
)


def main(arguments: flags.FlagValues) -> None:
    """Builds the data set; checks the one that is already at --out against the manifest."""
    manifest, out = require(arguments, "manifest"), require(arguments, "out")

    from etils import epath

    from aesthetic_jax.data.dataset import NAME, VERSION, plan_shards
    from aesthetic_jax.data.manifest import SPLITS, read_manifest
    from aesthetic_jax.data.scenes.facts_file import find_scenes

    samples = read_manifest(manifest)
    out, source = epath.Path(out).expanduser(), str(epath.Path(manifest).parent)
    find_scenes(source, ids=())  # refuses a malformed file before anything is written
    version = out / NAME / VERSION
    sizes = {split: sum(sample.split == split for sample in samples) for split in SPLITS}
    counts = ", ".join(f"{split} {size}" for split, size in sizes.items() if size)
    try:
        if version.exists():
            _check_same(version, source, samples)
            print(f"{version}: holds this data set already; {counts}")
            return
        left_out = _build(version, source, plan_shards(source, samples), arguments)
    except OSError as error:
        raise UserError(
            f"--out={out}: can't be written ({error.strerror or error}); "
            "fix that or choose another folder"
        ) from None
    rejected = f"; {left_out} of them left out, see rejects.jsonl" if left_out else ""
    print(f"{version}: {counts}{rejected}")


def _check_same(version: "epath.Path", source: str, samples: Sequence["Sample"]) -> None:
    """Checks an existing data set against its own checksums and the manifest's content.

    Raises:
        UserError: it is damaged, or has other content.
    """
    from tqdm import tqdm

    from aesthetic_jax.data.dataset import damaged_shard, fingerprint, read_digest
    from aesthetic_jax.data.manifest import SPLITS
    from aesthetic_jax.data.scenes.facts_file import SCENES, scenes_bytes

    try:
        stored = json.loads((version / "metadata.json").read_text())["fingerprint"]
        damaged = damaged_shard(str(version))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{version}: has no complete data set; remove it or choose another --out"
        ) from None
    if damaged:
        raise UserError(
            f"{version / damaged}: is damaged or missing; remove {version} and build again"
        )
    scenes = scenes_bytes(source)
    if scenes is not None and scenes != scenes_bytes(str(version)):
        raise UserError(
            f"{version / SCENES}: is missing, or not the one beside the manifest; "
            f"remove {version} and build again"
        )
    ordered = [sample for split in SPLITS for sample in samples if sample.split == split]
    bar = tqdm(ordered, desc="comparing", unit="sample", disable=None)
    if fingerprint(read_digest(source, sample) for sample in bar) != stored:
        raise UserError(
            f"{version}: has a data set with other content; remove it or choose another --out"
        )


def _build(
    version: "epath.Path", source: str, shards: Sequence["Shard"], arguments: flags.FlagValues
) -> int:
    """Writes the missing shards and joins all; returns the number of samples left out.

    Raises:
        UserError: more samples would be left out than --max_rejects allows. Shards without such
            samples are kept for the next run.
    """
    from aesthetic_jax.data.dataset import finish, read_description, read_descriptions
    from aesthetic_jax.data.scenes.facts_file import copy_scenes

    unfinished = version.parent / "unfinished"
    _prepare_folder(unfinished, source, shards)
    missing = [shard for shard in shards if read_description(str(unfinished), shard) is None]
    total = sum(len(shard.samples) for shard in shards)
    if arguments.beam_runner:
        _write_with_beam(source, str(unfinished), missing, arguments)
    else:
        _write_locally(source, str(unfinished), missing, total, arguments.workers)
    described = read_descriptions(str(unfinished), shards)
    rejects = [reject for _, description in described for reject in description["rejects"]]
    kept_any = any(description["kept"] for _, description in described)
    if len(rejects) > arguments.max_rejects * total or not kept_any:
        for shard, description in described:
            if description["rejects"]:
                (unfinished / f"{shard.file}.json").unlink()
        _remove_if_empty(unfinished, shards)
        others = len(rejects) - 1
        plural = "s" if others > 1 else ""
        more = f" ({others} more bad sample{plural}; --max_rejects=SHARE leaves them out)"
        raise UserError(rejects[0]["reason"] + (more if others else ""))
    (unfinished / "plan.json").unlink()
    copy_scenes(source, str(unfinished))
    finish(str(unfinished), shards, str(version))
    return len(rejects)


def _prepare_folder(unfinished: "epath.Path", source: str, shards: Sequence["Shard"]) -> None:
    """Makes the folder for shards; removes shards of another manifest from it."""
    content = [[shard.file, [(x.id, x.images) for x in shard.samples]] for shard in shards]
    plan = hashlib.sha256(json.dumps([source, content]).encode()).hexdigest()
    file = unfinished / "plan.json"
    if unfinished.exists() and not (file.exists() and file.read_text() == plan):
        unfinished.rmtree()
    unfinished.mkdir(parents=True, exist_ok=True)
    file.write_text(plan)


def _remove_if_empty(unfinished: "epath.Path", shards: Sequence["Shard"]) -> None:
    """Removes the folder for shards, and empty ones above it, unless it has a complete shard."""
    from aesthetic_jax.data.dataset import read_description

    if any(read_description(str(unfinished), shard) for shard in shards):
        return
    unfinished.rmtree()
    for folder in (unfinished.parent, unfinished.parent.parent):
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _write_locally(
    source: str, target: str, shards: Sequence["Shard"], total: int, workers: int
) -> None:
    """Writes shards in processes of this machine; the bar counts up to `total` samples."""
    from tqdm import tqdm

    from aesthetic_jax.data.dataset import write_shard

    finished = total - sum(len(shard.samples) for shard in shards)
    with tqdm(total=total, initial=finished, desc="building", unit="sample", disable=None) as bar:
        if workers == 1:
            for shard in shards:
                write_shard(source, target, shard)
                bar.update(len(shard.samples))
            return
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker)
        try:
            sizes = {
                pool.submit(write_shard, source, target, shard): len(shard.samples)
                for shard in shards
            }
            for future in concurrent.futures.as_completed(sizes):
                future.result()
                bar.update(sizes[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Makes a worker ignore Ctrl-C and exit with its parent, even if the parent is killed."""

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_with_beam(
    source: str, target: str, shards: Sequence["Shard"], arguments: flags.FlagValues
) -> None:
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import (  # pyright: ignore[reportMissingImports]
            PipelineOptions,
        )
    except ImportError:
        raise UserError(
            "--beam_runner: Apache Beam is not installed; pip install 'aesthetic-jax[beam]'"
        ) from None

    from aesthetic_jax.data.dataset import write_shard

    options = PipelineOptions([f"--{option}" for option in arguments.beam_options])
    try:
        pipeline = beam.Pipeline(runner=arguments.beam_runner, options=options)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--beam_runner={arguments.beam_runner}: {reason}; correct the runner or its options"
        ) from None
    with pipeline:
        (
            pipeline
            | beam.Create(list(shards))
            | beam.Reshuffle()  # otherwise one worker would get all shards
            | beam.Map(lambda shard: write_shard(source, target, shard))
        )
