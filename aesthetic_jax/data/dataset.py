"""Writes a manifest as a TFDS data set, without TensorFlow: ArrayRecord shards in file order.

JPEG, PNG and WebP files are stored byte for byte, whatever their mode (CMYK, 16 bits, palette).
The other formats that `decode_image` reads are stored as PNG of the same pixels.
`aesthetic_jax.data.records.open_records` reads the data set.

Any process on any machine can write a shard independently. It then writes the shard's description,
`SHARD.json`, next to it; a shard with a description is complete. `finish` turns the shards of one
folder into the data set. It adds

- the files that TFDS needs;
- `metadata.json`, what readers need without reading samples: the content's fingerprint and, for
  each split, the samples' ids, dimensions and numbers of options, and the indices of those with
  reasoning;
- `checksums.txt`, which `b2sum --check` reads;
- `scenes.jsonl`, a copy of the one beside the manifest, if there is one; only `evaluate` reads it;
- `rejects.jsonl`, where samples were left out.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from aesthetic_jax.data.images import decode_image, image_format
from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample
from aesthetic_jax.data.scenes.facts_file import SCENES
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store, write_whole

NAME, VERSION = "screening", "1.0.0"
SHARD_BYTES = 128 * 2**20
# Small splits still get this many shards, so that workers share them,
# unless a shard would get fewer samples than the minimum.
LEAST_SHARDS, LEAST_SAMPLES = 16, 128
CHECKSUMS, REJECTS = "checksums.txt", "rejects.jsonl"
STORED_FORMATS = ("JPEG", "PNG", "WEBP")  # stored byte for byte; others as PNG of the same pixels


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive samples of a split that go into one file."""

    split: str
    number: int  # within its split
    samples: tuple[Sample, ...] = dataclasses.field(repr=False)

    @property
    def file(self) -> str:
        """The file's name until the data set is finished."""
        return f"{self.split}-{self.number:05d}.array_record"


def plan_shards(folder: str, samples: Sequence[Sample]) -> list[Shard]:
    """Divides a manifest's samples into shards of about SHARD_BYTES.

    A split's size is estimated from the files of up to 64 of its samples.

    Args:
        folder: of the manifest.
        samples: all samples of the manifest.
    """
    shards = []
    for split in SPLITS:
        rows = [sample for sample in samples if sample.split == split]
        if not rows:
            continue
        measured = rows[:: math.ceil(len(rows) / 64)]
        paths = (epath.Path(folder) / image for sample in measured for image in sample.images)
        size = sum(path.stat().length for path in paths)
        by_size = math.ceil(size / len(measured) * len(rows) / SHARD_BYTES)
        count = min(len(rows), max(1, by_size, min(LEAST_SHARDS, len(rows) // LEAST_SAMPLES)))
        bounds = [round(len(rows) * i / count) for i in range(count + 1)]
        chunks = [tuple(rows[start:end]) for start, end in itertools.pairwise(bounds)]
        shards += [Shard(split, number, chunk) for number, chunk in enumerate(chunks)]
    return shards


def write_shard(source: str, target: str, shard: Shard) -> None:
    """Writes a shard, then its description, which lists samples that can't be read or decoded.

    Args:
        source: folder of the manifest.
        target: folder of the shards.
        shard: the shard to write.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    kept, digests, rejects = [], [], []
    serialize = _serializer()
    with tempfile.TemporaryDirectory() as scratch:  # ArrayRecord writes to local disks only
        local = os.path.join(scratch, shard.file)
        writer = ArrayRecordWriter(local, "group_size:1")
        for number, sample in enumerate(shard.samples):
            files, error = _read_files(source, sample)
            digests.append(sample_digest(sample, files))
            try:
                if error is not None:
                    raise error
                images = [
                    _storable(file, str(epath.Path(source) / name))
                    for file, name in zip(files, sample.images, strict=True)
                ]
            except UserError as reason:
                rejects.append({"id": sample.id, "split": sample.split, "reason": str(reason)})
                continue
            writer.write(serialize(sample, images))
            kept.append(number)
        writer.close()
        size, checksum = os.path.getsize(local), _checksum(local)
        partial = epath.Path(target) / f"{shard.file}.partial"
        epath.Path(local).copy(partial, overwrite=True)
    partial.replace(epath.Path(target) / shard.file)
    description = {
        "kept": kept,
        "digests": digests,
        "rejects": rejects,
        "bytes": size,
        "checksum": checksum,
    }
    write_whole(epath.Path(target) / f"{shard.file}.json", json.dumps(description))


def read_description(target: str, shard: Shard) -> dict[str, Any] | None:
    """The description that `write_shard` wrote; None if the shard is missing or incomplete."""
    file = epath.Path(target) / shard.file
    try:
        description = json.loads((file.parent / f"{shard.file}.json").read_text())
        return description if file.stat().length == description["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def read_descriptions(target: str, shards: Sequence[Shard]) -> list[tuple[Shard, dict[str, Any]]]:
    """All shards with their descriptions.

    Raises:
        ValueError: a shard is missing or incomplete.
    """
    described = []
    for shard in shards:
        description = read_description(target, shard)
        if description is None:
            raise ValueError(f"{target}: {shard.file} is not complete")
        described.append((shard, description))
    return described


def finish(target: str, shards: Sequence[Shard], final: str) -> None:
    """Turns a folder of shards into a data set, complete once it has its `dataset_info.json`.

    Args:
        target: folder to which `write_shard` wrote all shards; it is moved.
        shards: all of them.
        final: folder of the data set; must not exist.

    Raises:
        ValueError: a shard is not complete.
    """
    import tensorflow_datasets as tfds

    described = read_descriptions(target, shards)
    kept = {
        split: [
            shard.samples[i]
            for shard, description in described
            if shard.split == split
            for i in description["kept"]
        ]
        for split in SPLITS
    }
    folder, splits, checksums = epath.Path(target), [], []
    for split in (split for split in SPLITS if kept[split]):
        info, lines = _name_shards(folder, split, described)
        splits.append(info)
        checksums += lines
    if (folder / SCENES).exists():
        checksums.append(f"{_checksum(folder / SCENES)}  {SCENES}\n")
    (folder / CHECKSUMS).write_text("".join(checksums))
    rejects = [reject for _, description in described for reject in description["rejects"]]
    if rejects:
        (folder / REJECTS).write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    digests = (digest for _, description in described for digest in description["digests"])
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=NAME,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
        ),
        description=(
            "One original product photo, its candidates, a dimension, "
            "and the candidates that pass it."
        ),
        features=_features(),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(_metadata(kept, fingerprint(digests))),
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory() as scratch:
        info.write_to_directory(scratch)
        for file in epath.Path(scratch).iterdir():
            file.copy(folder / file.name, overwrite=True)
    for shard in shards:
        (folder / shard.file).unlink(missing_ok=True)  # a shard without any kept sample
        (folder / f"{shard.file}.json").unlink()
    _move(folder, epath.Path(final))


def _name_shards(
    folder: epath.Path, split: str, described: Sequence[tuple[Shard, dict[str, Any]]]
) -> tuple[Any, list[str]]:
    """Gives a split's shards the names that TFDS expects; returns its SplitInfo and checksums."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=NAME, split=split, filetype_suffix="array_record"
    )
    filled = [(x, description) for x, description in described if x.split == split]
    filled = [(shard, description) for shard, description in filled if description["kept"]]
    checksums = []
    for number, (shard, description) in enumerate(filled):
        name = template.sharded_filepath(shard_index=number, num_shards=len(filled)).name
        (folder / shard.file).replace(folder / name)
        checksums.append(f"{description['checksum']}  {name}\n")
    lengths = [len(description["kept"]) for _, description in filled]
    size = sum(description["bytes"] for _, description in filled)
    return tfds.core.SplitInfo(split, lengths, size, template), checksums


def _metadata(kept: Mapping[str, Sequence[Sample]], fingerprint: str) -> dict[str, Any]:
    """The content of metadata.json, given each split's samples."""
    splits = {split: samples for split, samples in kept.items() if samples}
    return {
        "fingerprint": fingerprint,
        "ids": {split: [sample.id for sample in samples] for split, samples in splits.items()},
        "dimensions": {
            split: [DIMENSIONS.index(sample.dimension) for sample in samples]
            for split, samples in splits.items()
        },
        "num_options": {
            split: [len(sample.candidates) for sample in samples]
            for split, samples in splits.items()
        },
        "reasoned": {
            split: [i for i, sample in enumerate(samples) if sample.reasoning]
            for split, samples in splits.items()
        },
    }


def damaged_shard(final: str) -> str | None:
    """The first file of a data set whose checksum is wrong; None if all are right."""
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
    """SHA-256 of all samples' digests in order: equal for equal content at any path."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def sample_digest(sample: Sample, files: Sequence[bytes]) -> str:
    """SHA-256 of a sample's fields and of those of its files that can be read."""
    fields = [
        sample.id,
        sample.split,
        sample.dimension,
        sample.answer,
        sample.reasoning,
        sample.question,
    ]
    return hashlib.sha256(
        json.dumps([*fields, [hashlib.sha256(file).hexdigest() for file in files]]).encode()
    ).hexdigest()


def read_digest(source: str, sample: Sample) -> str:
    """`sample_digest` of a sample with its files as they are now."""
    return sample_digest(sample, _read_files(source, sample)[0])


def _read_files(source: str, sample: Sample) -> tuple[list[bytes], UserError | None]:
    """A sample's files up to the first that can't be read, and the error for that one."""
    files = []
    for image in sample.images:
        path = epath.Path(source) / image
        try:
            files.append(path.read_bytes())
        except OSError as error:
            reason = f"{path}: can't be read ({error.strerror or error}); replace the file"
            return files, UserError(reason)
    return files, None


def _storable(file: bytes, name: str) -> bytes:
    """The bytes to store for an image; checks that it can be decoded."""
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
            "dimension": tfds.features.ClassLabel(
                names=DIMENSIONS, doc="what the candidates are judged by"
            ),
            "original": image,
            "candidates": tfds.features.Sequence(
                image, doc="2 to 8 images, the first is option A; none in a description"
            ),
            "answer": tfds.features.Text(
                doc="sorted letters of the candidates that pass, such as AC, or nothing"
            ),
            "reasoning": tfds.features.Text(doc="chain of thought; nothing if there is none"),
            "question": tfds.features.Text(
                doc="replaces the dimension's question; nothing if it stands"
            ),
        }
    )


@functools.cache
def _serializer() -> Callable[[Sample, Sequence[bytes]], bytes]:
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = _features()
    serializer = ExampleSerializer(features.get_serialized_info())

    def serialize(sample: Sample, images: Sequence[bytes]) -> bytes:
        # Files of encoded bytes are stored as they are; arrays would be encoded anew.
        original, *candidates = map(io.BytesIO, images)
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
        return example.SerializeToString(deterministic=True)  # equal samples give equal files

    return serialize


def _checksum(file: epath.PathLike) -> str:
    """BLAKE2b of a file, as `b2sum` prints it."""
    hashed = hashlib.blake2b()
    with epath.Path(file).open("rb") as content:
        while block := content.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()


def _move(folder: epath.Path, final: epath.Path) -> None:
    """Renames a folder; in an object store its files move one by one, dataset_info.json last."""
    if not in_object_store(final):
        folder.rename(final)
        return
    for file in sorted(folder.iterdir(), key=lambda file: file.name == "dataset_info.json"):
        file.replace(final / file.name)
