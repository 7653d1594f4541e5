"""Samples by number, with their images as encoded bytes, from a manifest or from a TFDS data set alike."""

import abc
import dataclasses
import functools

import numpy as np
from etils import epath
from jaxtyping import Bool

from aesthetic_jax.data.manifest import DIMENSIONS, Sample, read_manifest
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
    """A split's samples in the manifest's order; random access, picklable."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    @abc.abstractmethod
    def has_reasoning(self) -> Bool[np.ndarray, "n"]:
        """Which samples have a chain of thought, found without reading images."""


@dataclasses.dataclass(frozen=True)
class _ManifestRecords(Records):
    folder: str
    samples: tuple[Sample, ...] = dataclasses.field(repr=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Record:
        sample = self.samples[index]
        images = tuple((epath.Path(self.folder) / image).read_bytes() for image in sample.images)
        options = len(sample.candidates)
        answer = frozenset(sample.answer)
        return Record(sample.id, sample.dimension, images, answer, options, sample.reasoning, sample.question)

    def has_reasoning(self) -> Bool[np.ndarray, "n"]:
        return np.array([bool(sample.reasoning) for sample in self.samples])


@dataclasses.dataclass(frozen=True)
class _BuiltRecords(Records):
    data_dir: str
    split: str

    @functools.cached_property
    def _builder(self):
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.data_dir)

    @functools.cached_property
    def _source(self):
        import tensorflow_datasets as tfds

        class KeepEncoded(tfds.decode.SkipDecoding):  # TFDS's own lacks the NumPy path for sequences
            def decode_batch_example_np(self, example):
                return example

        return self._builder.as_data_source(self.split, decoders={"images": KeepEncoded()})

    def __getstate__(self):  # open files stay behind; Grain's workers open their own
        return {"data_dir": self.data_dir, "split": self.split}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        row = self._source[index]
        images = tuple(row["images"])
        return Record(
            id=row["id"].decode(),
            dimension=DIMENSIONS[row["dimension"]],
            images=images,
            answer=frozenset(row["answer"].decode()),
            num_options=len(images) - 1,
            reasoning=row["reasoning"].decode() or None,
            question=row["question"].decode() or None,
        )

    def has_reasoning(self) -> Bool[np.ndarray, "n"]:
        return np.isin(np.arange(len(self)), self._builder.info.metadata["reasoned"][self.split])


def open_records(manifest: str, data_dir: str, split: str) -> Records:
    """The samples of a split, from a manifest or from what `build` made of one; the other argument is "".

    Raises:
        UserError: no such data, or no samples in the split.
    """
    if bool(manifest) == bool(data_dir):
        raise UserError("config.data: give either data.manifest or data.data_dir")
    if manifest:
        samples = tuple(sample for sample in read_manifest(manifest) if sample.split == split)
        if not samples:
            raise UserError(f"{manifest}: has no samples of split '{split}'; add some or name another split")
        return _ManifestRecords(str(epath.Path(manifest).parent), samples)
    records = _BuiltRecords(_version_folder(data_dir), split)
    splits = records._builder.info.splits
    if split not in splits or not splits[split].num_examples:
        raise UserError(f"{data_dir}: has no split '{split}'; it has {', '.join(splits)}")
    return records


def _version_folder(data_dir: str) -> str:
    """Where TFDS put the data set inside the folder that `build` was given."""
    for folder in (epath.Path(data_dir), epath.Path(data_dir) / "screening" / "1.0.0"):
        if (folder / "dataset_info.json").exists():
            return str(folder)
    raise UserError(f"{data_dir}: is no data set; make one with aesthetic-jax build --manifest=FILE --out=DIR")
