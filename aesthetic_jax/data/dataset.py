"""The TFDS data set that a manifest becomes: ArrayRecord shards, written without TensorFlow, in the manifest's order.

JPEG, PNG and WebP files are stored byte for byte, whatever their mode (CMYK, 16 bits, palette); the other formats that
`decode_image` reads are stored as PNG of the same pixels. `aesthetic_jax.data.records.open_records` reads them back.

A shard is written on its own, by any process of any machine, and then described by a file beside it, `SHARD.json`: what has
one is whole. `finish` puts the shards of one folder together. It writes what TFDS wants to know; a metadata.json with what is
wanted without reading the samples (the fingerprint of the content, and of each split the ids, the dimensions and the numbers of
the samples that have reasoning); `checksums.txt`, which `b2sum --check` reads; and `rejects.jsonl` where samples were left out.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from etils import epath

from aesthetic_jax.data.images import decode_image, image_format
from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store, write_whole

NAME, VERSION = "screening", "1.0.0"
SHARD_BYTES = 128 * 2**20
LEAST_SHARDS, LEAST_SAMPLES = 16, 128  # a smaller split has so many shards, of so many samples at least: work to divide
CHECKSUMS, REJECTS = "checksums.txt", "rejects.jsonl"
STORED_FORMATS = ("JPEG", "PNG", "WEBP")  # byte for byte; others as PNG of the same pixels


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive samples of a split that go into one file."""

    split: str
    number: int  # within its split
    samples: tuple[Sample, ...] = dataclasses.field(repr=False)

    @property
    def file(self) -> str:
        """Its name until the data set is whole."""
        return f"{self.split}-{self.number:05d}.array_record"


def plan_shards(folder: str, samples: Sequence[Sample]) -> list[Shard]:
    """A manifest's samples in shards of about SHARD_BYTES, by the file sizes of up to 64 samples of each split.

    Args:
        folder: of the manifest.
        samples: all of the manifest's.
    """
    shards = []
    for split in SPLITS:
        rows = [sample for sample in samples if sample.split == split]
        if not rows:
            continue
        some = rows[:: math.ceil(len(rows) / 64)]
        size = sum((epath.Path(folder) / image).stat().length for sample in some for image in sample.images)
        by_size = math.ceil(size / len(some) * len(rows) / SHARD_BYTES)
        count = min(len(rows), max(1, by_size, min(LEAST_SHARDS, len(rows) // LEAST_SAMPLES)))
        bounds = [round(len(rows) * i / count) for i in range(count + 1)]
        parts = [tuple(rows[start:end]) for start, end in itertools.pairwise(bounds)]
        shards += [Shard(split, number, part) for number, part in enumerate(parts)]
    return shards


def write_shard(source: str, target: str, shard: Shard) -> None:
    """Writes a shard and then its description; what can't be read or decoded is left out and listed in the latter.

    Args:
        source: folder of the manifest.
        target: folder of the shards.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    kept, digests, rejects = [], [], []
    serialize = _serializer()
    with tempfile.TemporaryDirectory() as scratch:  # ArrayRecord files are written to disks only
        local = os.path.join(scratch, shard.file)
        writer = ArrayRecordWriter(local, "group_size:1")
        for number, sample in enumerate(shard.samples):
            files, reason = _read_files(source, sample)
            digests.append(sample_digest(sample, files))
            try:
                if reason is not None:
                    raise UserError(reason)
                images = [
                    _storable(file, str(epath.Path(source) / name))
                    for file, name in zip(files, sample.images, strict=True)
                ]
            except UserError as error:
                rejects.append({"id": sample.id, "split": sample.split, "reason": str(error)})
                continue
            writer.write(serialize(sample, images))
            kept.append(number)
        writer.close()
        size, checksum = os.path.getsize(local), _checksum(local)
        partial = epath.Path(target) / f"{shard.file}.partial"
        epath.Path(local).copy(partial, overwrite=True)
    partial.replace(epath.Path(target) / shard.file)
    told = {"kept": kept, "digests": digests, "rejects": rejects, "bytes": size, "checksum": checksum}
    write_whole(epath.Path(target) / f"{shard.file}.json", json.dumps(told))


def read_description(target: str, shard: Shard) -> dict[str, Any] | None:
    """What `write_shard` said of a shard; None if it isn't there, whole."""
    file = epath.Path(target) / shard.file
    try:
        told = json.loads((file.parent / f"{shard.file}.json").read_text())
        return told if file.stat().length == told["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def finish(target: str, shards: Sequence[Shard], final: str) -> None:
    """Makes the shards of a folder the data set `final`, which is whole once its `dataset_info.json` is there.

    Args:
        target: folder that `write_shard` wrote all shards to; it ceases to be.
        shards: all of them.
        final: folder, not there yet.
    """
    import tensorflow_datasets as tfds

    told = [read_description(target, shard) for shard in shards]
    rows = {split: [] for split in SPLITS}
    for shard, each in zip(shards, told, strict=True):
        rows[shard.split] += [shard.samples[i] for i in each["kept"]]
    rows = {split: samples for split, samples in rows.items() if samples}
    metadata = {
        "fingerprint": fingerprint(digest for each in told for digest in each["digests"]),
        "ids": {split: [sample.id for sample in samples] for split, samples in rows.items()},
        "dimensions": {split: [DIMENSIONS.index(x.dimension) for x in samples] for split, samples in rows.items()},
        "reasoned": {split: [i for i, x in enumerate(samples) if x.reasoning] for split, samples in rows.items()},
    }
    folder, splits, checksums = epath.Path(target), [], []
    for split in rows:
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=NAME, split=split, filetype_suffix="array_record"
        )
        mine = [(x, each) for x, each in zip(shards, told, strict=True) if x.split == split and each["kept"]]
        for number, (shard, each) in enumerate(mine):
            name = template.sharded_filepath(shard_index=number, num_shards=len(mine)).name
            (folder / shard.file).replace(folder / name)
            checksums.append(f"{each['checksum']}  {name}\n")
        lengths, size = [len(each["kept"]) for _, each in mine], sum(each["bytes"] for _, each in mine)
        splits.append(tfds.core.SplitInfo(split, lengths, size, template))
    (folder / CHECKSUMS).write_text("".join(checksums))
    if rejects := [reject for each in told for reject in each["rejects"]]:
        (folder / REJECTS).write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
        ),
        description="One original product photo, its candidates, a dimension, and the candidates that pass it.",
        features=_features(),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata),
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory() as scratch:
        info.write_to_directory(scratch)
        for file in epath.Path(scratch).iterdir():
            file.copy(folder / file.name, overwrite=True)
    for shard in shards:
        (folder / shard.file).unlink(missing_ok=True)  # one of rejects alone
        (folder / f"{shard.file}.json").unlink()
    _move(folder, epath.Path(final))


def damaged_shard(final: str) -> str | None:
    """The first shard of a data set that is not as it was written; None: all are."""
    folder = epath.Path(final)
    for line in (folder / CHECKSUMS).read_text().splitlines():
        checksum, name = line.split("  ", 1)
        try:
            if _checksum(folder / name) != checksum:
                return name
        except OSError:
            return name
    return None


def fingerprint(digests: Iterable[str]) -> str:
    """SHA-256 of all samples' digests in order: equal for equal content, wherever its files lie."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def sample_digest(sample: Sample, files: Sequence[bytes]) -> str:
    """SHA-256 of a sample's fields and files, as many as could be read."""
    fields = [sample.id, sample.split, sample.dimension, sample.answer, sample.reasoning, sample.question]
    return hashlib.sha256(
        json.dumps([*fields, [hashlib.sha256(file).hexdigest() for file in files]]).encode()
    ).hexdigest()


def _read_files(source: str, sample: Sample) -> tuple[list[bytes], str | None]:
    """A sample's files, and why the first that can't be read can't."""
    files = []
    for image in sample.images:
        try:
            files.append((epath.Path(source) / image).read_bytes())
        except OSError as error:
            return files, f"{epath.Path(source) / image}: can't be read ({error.strerror or error}); mend the file"
    return files, None


def read_digest(source: str, sample: Sample) -> str:
    """`sample_digest` of a sample as its files are now."""
    return sample_digest(sample, _read_files(source, sample)[0])


def _storable(file: bytes, name: str) -> bytes:
    as_it_is = image_format(file) in STORED_FORMATS
    image = decode_image(file, name, reduced=as_it_is)
    if as_it_is:
        return file
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _features() -> Any:
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, None))
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(doc="as in the manifest"),
            "dimension": tfds.features.ClassLabel(names=DIMENSIONS, doc="what the candidates are judged by"),
            "original": image,
            "candidates": tfds.features.Sequence(image, doc="2 to 8 images; the first is option A"),
            "answer": tfds.features.Text(doc="sorted letters of the candidates that pass, such as AC, or nothing"),
            "reasoning": tfds.features.Text(doc="chain of thought; nothing if there is none"),
            "question": tfds.features.Text(doc="replaces the dimension's question; nothing if it stands"),
        }
    )


@functools.cache
def _serializer() -> Callable[[Sample, Sequence[bytes]], bytes]:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = _features()
    serializer = ExampleSerializer(features.get_serialized_info())

    def serialize(sample: Sample, images: Sequence[bytes]) -> bytes:
        original, *candidates = map(io.BytesIO, images)  # encoded bytes; arrays would be encoded anew
        fields = {
            "id": sample.id,
            "dimension": sample.dimension,
            "original": original,
            "candidates": candidates,
            "answer": "".join(sample.answer),
            "reasoning": sample.reasoning or "",
            "question": sample.question or "",
        }
        example = serializer.get_tf_example(features.encode_example(fields))
        return example.SerializeToString(deterministic=True)  # equal samples make equal files

    return serialize


def _checksum(file: Any) -> str:
    """BLAKE2b of a file, as `b2sum` prints it."""
    hashed = hashlib.blake2b()
    with epath.Path(file).open("rb") as content:
        while block := content.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()


def _move(folder: epath.Path, final: epath.Path) -> None:
    """Renames a folder; an object store has none, so its files move one by one, dataset_info.json last."""
    if not in_object_store(final):
        folder.rename(final)
        return
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "dataset_info.json"):
        file.replace(final / file.name)
