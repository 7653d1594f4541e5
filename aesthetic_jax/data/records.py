"""Samples by number, with their images as encoded bytes, from a manifest or from a TFDS data set alike."""

import abc
import dataclasses
import functools

import numpy as np
from etils import epath
from jaxtyping import Bool, Int

from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample, place_name, read_manifest
from aesthetic_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        images: encoded, the original first.
        answer: letters of the candidates that pass.
        num_options: number of candidates.
        reasoning: chain of thought, None where there is none.
        question: replaces the dimension's question, None where the latter is meant.
    """

    id: str
    dimension: str
    images: tuple[bytes, ...]
    answer: frozenset[str]
    num_options: int
    reasoning: str | None
    question: str | None


class Records(abc.ABC):
    """A split's samples in the manifest's order; random access, picklable.

    Files are opened when a sample is asked for, and nothing read is kept.
    """

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @abc.abstractmethod
    def ids(self) -> list[str]:
        """The samples' ids in order, found without reading images."""

    @abc.abstractmethod
    def image_name(self, index: int, place: int) -> str:
        """What errors call an image, 0 the original: its file, or SPLIT/ID/PLACE in a data set."""

    @abc.abstractmethod
    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        """Which samples have a chain of thought, found without reading images."""

    @abc.abstractmethod
    def dimensions(self) -> Int[np.ndarray, " R"]:
        """The place of each sample's dimension in DIMENSIONS, found without reading images."""


def open_records(manifest: str | None = None, data_dir: str | None = None, split: str = "train") -> Records:
    """The samples of a split, from a manifest or from what `build` made of one; the other argument is None or "".

    Args:
        manifest: a manifest.jsonl; its images are looked for.
        data_dir: the folder that `build --out` was given, or the version folder inside it.

    Raises:
        UserError: not exactly one of the two, no such data, or no samples in the split.
    """
    _check_source(manifest, data_dir)
    if manifest:
        samples = tuple(sample for sample in read_manifest(manifest) if sample.split == split)
        if not samples:
            raise UserError(f"{manifest}: has no samples of split '{split}'; add some or name another split")
        return _ManifestRecords(manifest, split, samples)
    return _BuiltRecords(_version_folder(data_dir), split).checked()


def _check_source(manifest: str | None, data_dir: str | None) -> None:
    if bool(manifest) == bool(data_dir):
        raise UserError("data: give either data.manifest or data.data_dir")


def open_splits(manifest: str | None = None, data_dir: str | None = None) -> dict[str, Records]:
    """All splits that have samples, each as `open_records` gives it; a manifest is read once.

    Raises:
        UserError: as `open_records`.
    """
    _check_source(manifest, data_dir)
    if manifest:
        samples = read_manifest(manifest)
        rows = {split: tuple(sample for sample in samples if sample.split == split) for split in SPLITS}
        return {split: _ManifestRecords(manifest, split, rows[split]) for split in SPLITS if rows[split]}
    folder = _version_folder(data_dir)
    names = _BuiltRecords(folder, "").splits()
    return {split: _BuiltRecords(folder, split) for split in SPLITS if split in names}


@dataclasses.dataclass(frozen=True)
class _ManifestRecords(Records):
    manifest: str
    split: str
    samples: tuple[Sample, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Record:
        sample = self.samples[index]
        folder = epath.Path(self.manifest).parent
        try:
            images = tuple((folder / image).read_bytes() for image in sample.images)
        except OSError as error:
            raise UserError(f"{self.manifest}: sample {sample.id}: an image can't be read ({error})") from None
        options = len(sample.candidates)
        answer = frozenset(sample.answer)
        return Record(sample.id, sample.dimension, images, answer, options, sample.reasoning, sample.question)

    def ids(self) -> list[str]:
        return [sample.id for sample in self.samples]

    def image_name(self, index: int, place: int) -> str:
        return str(epath.Path(self.manifest).parent / self.samples[index].images[place])

    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        return np.array([bool(sample.reasoning) for sample in self.samples])

    def dimensions(self) -> Int[np.ndarray, " R"]:
        return np.array([DIMENSIONS.index(sample.dimension) for sample in self.samples])


@dataclasses.dataclass(frozen=True)
class _BuiltRecords(Records):
    data_dir: str
    split: str

    def checked(self) -> "_BuiltRecords":
        """Itself, unless the data set is damaged or has no such split."""
        if self.split not in (splits := self.splits()):
            raise UserError(f"{self.data_dir}: has no samples of split '{self.split}'; it has {', '.join(splits)}")
        return self

    def splits(self) -> list[str]:
        """The data set's splits, unless it is damaged."""
        try:
            splits = self._builder.info.splits
            samples, indexed = (
                sum(x.num_examples for x in splits.values()),
                sum(map(len, self._metadata["ids"].values())),
            )
        except Exception as error:  # TFDS raises many kinds
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"{self.data_dir}: can't be opened ({reason}); build the data set again") from None
        if samples != indexed:
            raise UserError(f"{self.data_dir}: is no data set of aesthetic-jax build, or damaged; build it again")
        return list(splits)

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.data_dir)

    @property
    def _metadata(self):
        return self._builder.info.metadata

    @functools.cached_property
    def _source(self):
        import tensorflow_datasets as tfds

        class KeepEncoded(tfds.decode.SkipDecoding):  # TFDS's own lacks the NumPy path for sequences
            def decode_batch_example_np(self, example):
                return example

        decoders = {"original": KeepEncoded(), "candidates": KeepEncoded()}
        return self._builder.as_data_source(self.split, decoders=decoders)

    def __getstate__(self):  # open files stay behind; Grain's workers open their own
        return {"data_dir": self.data_dir, "split": self.split}

    def __len__(self) -> int:
        return len(self._metadata["ids"][self.split])

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self!r} has {len(self)} samples, none of number {index}")
        row = self._source[int(index) % len(self)]
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

    def image_name(self, index: int, place: int) -> str:
        return f"{self.split}/{self._metadata['ids'][self.split][index]}/{place_name(place)}"

    def has_reasoning(self) -> Bool[np.ndarray, " R"]:
        return np.isin(np.arange(len(self)), self._metadata["reasoned"][self.split])

    def dimensions(self) -> Int[np.ndarray, " R"]:
        try:
            return np.array(self._metadata["dimensions"][self.split])
        except KeyError:
            raise UserError(
                f"{self.data_dir}: does not tell the samples' dimensions, an older version built it; build it again"
            ) from None


def _version_folder(data_dir: str) -> str:
    """Where TFDS put the data set inside the folder that `build` was given."""
    for folder in (epath.Path(data_dir), epath.Path(data_dir) / "screening" / "1.0.0"):
        if (folder / "dataset_info.json").exists():
            return str(folder)
    raise UserError(f"{data_dir}: is no data set; make one with aesthetic-jax build --manifest=FILE --out=DIR")
