"""Turns a manifest into a TFDS data set (ArrayRecord files); decodes every image once to be sure.

aesthetic-jax build --manifest=FILE --out=DIR [--max_rejects=SHARE]
aesthetic-jax build --manifest=gs://BUCKET/manifest.jsonl --out=gs://BUCKET/data --beam_runner=DataflowRunner \
  --beam_options=project=PROJECT,region=REGION,temp_location=gs://BUCKET/tmp

Cut off and started again, it goes on behind the shards that are done. With --beam_runner shards are written by Apache Beam's
workers, which need this package and see both paths; without, by processes of this machine.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("manifest", None, "manifest.jsonl; its images lie relative to it", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for the data set", flag_values=FLAGS)
flags.DEFINE_integer("workers", os.cpu_count(), "processes that write shards", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float(
    "max_rejects",
    0.0,
    "share of samples that may be left out, as an image of theirs can't be decoded; rejects.jsonl lists them",
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
flags.DEFINE_string("beam_runner", "", "Apache Beam's, such as DirectRunner or DataflowRunner", flag_values=FLAGS)
flags.DEFINE_list("beam_options", [], "its options, without --, such as direct_num_workers=2", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    manifest, out = require(arguments, "manifest"), require(arguments, "out")

    from etils import epath

    from aesthetic_jax.data.dataset import NAME, VERSION, plan_shards
    from aesthetic_jax.data.manifest import SPLITS, read_manifest

    samples = read_manifest(manifest)
    out, source = epath.Path(out).expanduser(), str(epath.Path(manifest).parent)
    version = out / NAME / VERSION
    counts = ", ".join(f"{split} {n}" for split in SPLITS if (n := sum(sample.split == split for sample in samples)))
    try:
        if version.exists():
            _check_same(version, source, samples)
            print(f"{version}: holds this data set already; {counts}")
            return
        left_out = _build(version, source, plan_shards(source, samples), arguments)
    except OSError as error:
        raise UserError(
            f"{out}: can't be written ({error.strerror or error}); mend that or name another --out"
        ) from None
    print(f"{version}: {counts}" + (f"; {left_out} of them left out, see rejects.jsonl" if left_out else ""))


def _check_same(version: Any, source: str, samples: Sequence) -> None:
    """Compares what is there with the manifest's content, and with its own checksums.

    Raises:
        UserError: it is something else, or damaged.
    """
    from tqdm import tqdm

    from aesthetic_jax.data.dataset import damaged_shard, fingerprint, read_digest
    from aesthetic_jax.data.manifest import SPLITS

    try:
        stored = json.loads((version / "metadata.json").read_text())["fingerprint"]
        damaged = damaged_shard(version)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{version}: holds no whole data set; remove it or name another --out") from None
    if damaged:
        raise UserError(f"{version / damaged}: is damaged or missing; remove {version} and build again")
    ordered = [sample for split in SPLITS for sample in samples if sample.split == split]
    bar = tqdm(ordered, desc="comparing", unit="sample", disable=None)
    if fingerprint(read_digest(source, sample) for sample in bar) != stored:
        raise UserError(f"{version}: holds a data set of other content; remove it or name another --out")


def _build(version: Any, source: str, shards: Sequence, arguments: flags.FlagValues) -> int:
    """Writes the shards that aren't there and puts them together; returns the number of samples left out.

    Raises:
        UserError: more samples have to be left out than may be; shards without such samples are kept for the next try.
    """
    from aesthetic_jax.data.dataset import finish, read_description

    unfinished = version.parent / "unfinished"
    _claim(unfinished, source, shards)
    left = [shard for shard in shards if read_description(unfinished, shard) is None]
    write = _write_with_beam if arguments.beam_runner else _write_here
    write(source, str(unfinished), left, sum(len(x.samples) for x in shards), arguments)
    told = [read_description(unfinished, shard) for shard in shards]
    rejects = [reject for each in told for reject in each["rejects"]]
    allowed = arguments.max_rejects * sum(len(shard.samples) for shard in shards)
    if len(rejects) > allowed or not any(each["kept"] for each in told):
        for shard, each in zip(shards, told, strict=True):
            if each["rejects"]:
                (unfinished / f"{shard.file}.json").unlink()
        _remove_if_nothing_is_done(unfinished, shards)
        more = f" ({len(rejects) - 1} more samples are bad; --max_rejects=SHARE leaves them out)" if rejects[1:] else ""
        raise UserError(f"{rejects[0]['reason']}{more}")
    (unfinished / "plan.json").unlink()
    finish(str(unfinished), shards, str(version))
    return len(rejects)


def _claim(unfinished: Any, source: str, shards: Sequence) -> None:
    """Makes the folder for shards; what it holds of another manifest is removed."""
    told = [[shard.file, [(x.id, x.images) for x in shard.samples]] for shard in shards]
    plan = hashlib.sha256(json.dumps([source, told]).encode()).hexdigest()
    file = unfinished / "plan.json"
    if unfinished.exists() and not (file.exists() and file.read_text() == plan):
        unfinished.rmtree()
    unfinished.mkdir(parents=True, exist_ok=True)
    file.write_text(plan)


def _remove_if_nothing_is_done(unfinished: Any, shards: Sequence) -> None:
    from aesthetic_jax.data.dataset import read_description

    if any(read_description(unfinished, shard) for shard in shards):
        return
    unfinished.rmtree()
    for folder in (unfinished.parent, unfinished.parent.parent):
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _write_here(source: str, target: str, shards: Sequence, total: int, arguments: flags.FlagValues) -> None:
    from tqdm import tqdm

    from aesthetic_jax.data.dataset import write_shard

    initial = total - sum(len(shard.samples) for shard in shards)
    with tqdm(total=total, initial=initial, desc="building", unit="sample", disable=None) as bar:
        if arguments.workers == 1:
            for shard in shards:
                write_shard(source, target, shard)
                bar.update(len(shard.samples))
            return
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        pool = concurrent.futures.ProcessPoolExecutor(arguments.workers, context, _start_worker)
        try:
            sizes = {pool.submit(write_shard, source, target, shard): len(shard.samples) for shard in shards}
            for future in concurrent.futures.as_completed(sizes):
                future.result()
                bar.update(sizes[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even where it is killed."""

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_with_beam(source: str, target: str, shards: Sequence, total: int, arguments: flags.FlagValues) -> None:
    try:
        import apache_beam as beam
    except ImportError:
        raise UserError("--beam_runner: Apache Beam is not installed; pip install 'aesthetic-jax[beam]'") from None
    from apache_beam.options.pipeline_options import PipelineOptions

    from aesthetic_jax.data.dataset import write_shard

    options = PipelineOptions([f"--{option}" for option in arguments.beam_options])
    try:
        pipeline = beam.Pipeline(runner=arguments.beam_runner, options=options)
    except ValueError as error:
        raise UserError(f"--beam_runner={arguments.beam_runner}: {str(error).splitlines()[0]}") from None
    with pipeline:
        (
            pipeline
            | beam.Create(list(shards))
            | beam.Reshuffle()  # or one worker would get them all
            | beam.Map(lambda shard: write_shard(source, target, shard))
        )
