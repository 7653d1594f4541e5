"""The TFDS builder: a manifest's samples in ArrayRecord files, written without TensorFlow.

Images are stored as the bytes they came in, nothing is encoded again. Order is the manifest's. The metadata holds what is
wanted without reading the samples: a fingerprint of the manifest, and of each split the ids and which have reasoning.
"""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, read_manifest


def fingerprint(manifest: str) -> str:
    """SHA-256 of the manifest and of the sizes of its images: equal for the same content."""
    digest = hashlib.sha256(epath.Path(manifest).read_bytes())
    folder = epath.Path(manifest).parent
    for sample in read_manifest(manifest):
        for image in sample.images:
            digest.update(f"{image} {(folder / image).stat().length}\n".encode())
    return digest.hexdigest()


class Screening(tfds.core.GeneratorBasedBuilder):
    """One original product photo, its candidates, a dimension, and the letters of the candidates that pass it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, manifest: str | None = None, **kwargs: Any):
        """Builds from `manifest`; all other arguments are TFDS's."""
        self._manifest = manifest
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, None))
        return self.dataset_info_from_configs(
            description=__doc__,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "dimension": tfds.features.ClassLabel(names=DIMENSIONS),
                    "images": tfds.features.Sequence(image),  # the original first
                    "answer": tfds.features.Text(),  # sorted letters, such as "AC"
                    "reasoning": tfds.features.Text(),  # "" for none, as is the question
                    "question": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        samples = read_manifest(self._manifest)
        by_split = {split: [x for x in samples if x.split == split] for split in SPLITS}
        by_split = {split: rows for split, rows in by_split.items() if rows}
        self.info.metadata.update(
            fingerprint=fingerprint(self._manifest),
            ids={split: [x.id for x in rows] for split, rows in by_split.items()},
            reasoned={split: [i for i, x in enumerate(rows) if x.reasoning] for split, rows in by_split.items()},
        )
        return {split: self._generate_examples(rows) for split, rows in by_split.items()}

    def _generate_examples(self, samples: list) -> Iterator[tuple[int, dict[str, Any]]]:
        folder = epath.Path(self._manifest).parent
        for number, sample in enumerate(samples):
            yield (
                number,
                {
                    "id": sample.id,
                    "dimension": sample.dimension,
                    "images": [io.BytesIO((folder / image).read_bytes()) for image in sample.images],
                    "answer": "".join(sample.answer),
                    "reasoning": sample.reasoning or "",
                    "question": sample.question or "",
                },
            )
