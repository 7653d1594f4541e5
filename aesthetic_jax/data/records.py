"""Samples by index, with their images as encoded bytes, from a manifest or a built data set."""

import abc
import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample, image_role, read_manifest
from aesthetic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        id: as in the manifest.
        dimension: one of DIMENSIONS.
        images: encoded images, the original first.
        answer: letters of the candidates that pass.
        num_options: number of candidates.
        reasoning: chain of thought, or None.
        question: replaces the dimension's question, or None.
    """

    id: str
    dimension: str
    images: tuple[bytes, ...]
    answer: frozenset[str]
    num_options: int
    reasoning: str | None
    question: str | None


class Records(Sequence):
    """A split's samples in the manifest's order, with random access; picklable.

    Images are read on access and not kept.
    """

    @abc.abstractmethod
    def ids(self) -> list[str]:
        """The samples' ids in order; reads no images."""

    @abc.abstractmethod
    def image_name(self, index: int, position: int) -> str:
        """What errors call an image: its file, or SPLIT/ID/ROLE in a built data set.

        Args:
            index: index of the sample.
            position: position of the image in the sample; 0 is the original.
        """

    @abc.abstractmethod
    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        """Which samples have a chain of thought; reads no images."""

    @abc.abstractmethod
    def dimensions(self) -> Int[np.ndarray, " R"]:
        """Each sample's dimension as an index into DIMENSIONS; reads no images."""

    @abc.abstractmethod
    def num_options(self) -> Int[np.ndarray, " R"]:
        """Each sample's number of candidates; reads no images."""

    def has_descriptions(self) -> bool:
        """Whether some samples have no candidates; reads no images."""
        return bool((self.num_options() == 0).any())


def open_records(
    manifest: str | None = None, data_dir: str | None = None, split: str = "train"
) -> Records:
    """The samples of a split; give one of `manifest` and `data_dir`, the other None or "".

    Args:
        manifest: a manifest.jsonl, whose images must exist.
        data_dir: the folder of `build --out`, or the version folder inside it.
        split: one of SPLITS.

    Raises:
        UserError: not exactly one source, no such data, or no samples in the split.
    """
    _check_source(manifest, data_dir)
    if manifest:
        samples = tuple(sample for sample in read_manifest(manifest) if sample.split == split)
        if not samples:
            raise UserError(
                f"{manifest}: has no samples of split '{split}'; add some or choose another split"
            )
        return _ManifestRecords(manifest, split, samples)
    records = _BuiltRecords(_version_folder(data_dir or ""), split)
    splits = records.splits()
    if split not in splits:
        raise UserError(
            f"{records.data_dir}: has no samples of split '{split}'; "
            f"choose one of {', '.join(splits)}"
        )
    return records


def open_splits(manifest: str | None = None, data_dir: str | None = None) -> dict[str, Records]:
    """All splits that have samples, as `open_records` opens each; a manifest is read once.

    Raises:
        UserError: not exactly one source, or no such data.
    """
    _check_source(manifest, data_dir)
    if manifest:
        samples = read_manifest(manifest)
        rows = {
            split: tuple(sample for sample in samples if sample.split == split) for split in SPLITS
        }
        return {
            split: _ManifestRecords(manifest, split, rows[split]) for split in SPLITS if rows[split]
        }
    folder = _version_folder(data_dir or "")
    names = _BuiltRecords(folder, "").splits()
    return {split: _BuiltRecords(folder, split) for split in SPLITS if split in names}


def refuse_descriptions(records: Records, split: str, mend: str) -> None:
    """Refuses a split with descriptions, which have no answer to score.

    Args:
        records: the samples of a split.
        split: its name, for the message.
        mend: what to do instead.

    Raises:
        UserError: some samples are descriptions, without candidates.
    """
    if records.has_descriptions():
        raise UserError(
            f"config.data: the {split} split has descriptions, without candidates; {mend}"
        )


def data_folder(manifest: str | None = None, data_dir: str | None = None) -> str:
    """The folder of the manifest, or of the built data set's files.

    Raises:
        UserError: not exactly one source, or no such data set.
    """
    _check_source(manifest, data_dir)
    return str(epath.Path(manifest).parent) if manifest else _version_folder(data_dir or "")


def _check_source(manifest: str | None, data_dir: str | None) -> None:
    if bool(manifest) == bool(data_dir):
        raise UserError("config: give either data.manifest or data.data_dir")


@dataclasses.dataclass(frozen=True)
class _ManifestRecords(Records):
    manifest: str
    split: str
    samples: tuple[Sample, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: SupportsIndex) -> Record:
        sample = self.samples[index]
        folder = epath.Path(self.manifest).parent
        images = []
        for image in sample.images:
            try:
                images.append((folder / image).read_bytes())
            except OSError as error:
                raise UserError(
                    f"{folder / image}: can't be read ({error.strerror or error}); "
                    f"restore it, or remove sample {sample.id} from {self.manifest}"
                ) from None
        return Record(
            id=sample.id,
            dimension=sample.dimension,
            images=tuple(images),
            answer=frozenset(sample.answer),
            num_options=len(sample.candidates),
            reasoning=sample.reasoning,
            question=sample.question,
        )

    def ids(self) -> list[str]:
        return [sample.id for sample in self.samples]

    def image_name(self, index: int, position: int) -> str:
        return str(epath.Path(self.manifest).parent / self.samples[index].images[position])

    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        return np.array([bool(sample.reasoning) for sample in self.samples])

    def dimensions(self) -> Int[np.ndarray, " R"]:
        return np.array([DIMENSIONS.index(sample.dimension) for sample in self.samples])

    def num_options(self) -> Int[np.ndarray, " R"]:
        return np.array([len(sample.candidates) for sample in self.samples])


@dataclasses.dataclass(frozen=True)
class _BuiltRecords(Records):
    data_dir: str
    split: str

    def splits(self) -> list[str]:
        """The data set's splits.

        Raises:
            UserError: the data set is damaged.
        """
        try:
            splits = self._builder.info.splits
            stored = sum(info.num_examples for info in splits.values())
            listed = sum(map(len, self._metadata["ids"].values()))
        except Exception as error:  # TFDS raises many kinds
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{self.data_dir}: can't be opened ({reason}); build the data set again"
            ) from None
        if stored != listed:
            raise UserError(
                f"{self.data_dir}: is damaged, or not a data set of aesthetic-jax build; "
                "build it again"
            )
        return list(splits)

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.data_dir)

    @property
    def _metadata(self) -> dict[str, Any]:
        return self._builder.info.metadata or {}

    @functools.cached_property
    def _source(self):
        import tensorflow_datasets as tfds

        class KeepEncoded(tfds.decode.SkipDecoding):
            # TFDS's own class lacks the NumPy path for sequences.
            def decode_batch_example_np(self, example):
                return example

        decoders = {"original": KeepEncoded(), "candidates": KeepEncoded()}
        # pyright reads the wrong signature from TFDS's decorators.
        return self._builder.as_data_source(self.split, decoders=decoders)  # pyright: ignore

    def __getstate__(self):  # without open files: Grain's workers open their own
        return {"data_dir": self.data_dir, "split": self.split}

    def __len__(self) -> int:
        return len(self._metadata["ids"][self.split])

    def __getitem__(self, index: SupportsIndex) -> Record:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self!r} has {len(self)} samples, none with index {number}")
        row = self._source[number % len(self)]
        images = (row["original"], *row["candidates"])
        return Record(
            id=row["id"].decode(),
            dimension=DIMENSIONS[row["dimension"]],
            images=images,
            answer=frozenset(row["answer"].decode()),
            num_options=len(images) - 1,
            reasoning=row["reasoning"].decode() or None,
            question=row["question"].decode() or None,
        )

    def ids(self) -> list[str]:
        return list(self._metadata["ids"][self.split])

    def image_name(self, index: int, position: int) -> str:
        sample = self._metadata["ids"][self.split][index]
        return f"{self.split}/{sample}/{image_role(position)}"

    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        return np.isin(np.arange(len(self)), self._metadata["reasoned"][self.split])

    def dimensions(self) -> Int[np.ndarray, " R"]:
        return self._listed("dimensions")

    def num_options(self) -> Int[np.ndarray, " R"]:
        return self._listed("num_options")

    def has_descriptions(self) -> bool:
        # A data set whose metadata lacks these numbers has no descriptions.
        return 0 in self._metadata.get("num_options", {}).get(self.split, ())

    def _listed(self, name: str) -> Int[np.ndarray, " R"]:
        try:
            return np.array(self._metadata[name][self.split])
        except KeyError:
            raise UserError(
                f"{self.data_dir}: metadata.json lacks the samples' {name}; "
                "build the data set again"
            ) from None


def _version_folder(data_dir: str) -> str:
    """The folder in which TFDS put the data set: `build --out` or the version folder in it."""
    for folder in (epath.Path(data_dir), epath.Path(data_dir) / "screening" / "1.0.0"):
        if (folder / "dataset_info.json").exists():
            return str(folder)
    raise UserError(
        f"{data_dir}: has no data set; make one with aesthetic-jax build --manifest=FILE --out=DIR"
    )
