"""The TFDS builder: a manifest's samples in ArrayRecord files, written without TensorFlow, in the manifest's order.

JPEG, PNG and WebP files are stored byte for byte, whatever their mode (CMYK, 16 bits, palette); the other formats that
`decode_image` reads are stored as PNG of the same pixels. `aesthetic_jax.data.records.open_records` reads them back.

It is a ShardBasedBuilder because TFDS's GeneratorBasedBuilder sorts a split of more than 1 GB with TensorFlow's files.

The metadata holds what is wanted without reading the samples: the fingerprint of the content, and of each split the ids,
the dimensions and the numbers of the samples that have reasoning.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample
from aesthetic_jax.data.screening.content import Content, fingerprint, read_contents

SHARD_BYTES = 128 * 2**20  # TFDS keeps a shard in memory while it writes it

Example = tuple[int, dict[str, Any]]


class Screening(tfds.core.ShardBasedBuilder):
    """One original product photo, its candidates, a dimension, and the letters of the candidates that pass it."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, folder: str = "", samples: Sequence[Sample] = (), workers: int = 1, **kwargs: Any):
        """Builds from a manifest's samples.

        Args:
            folder: of the manifest.
            samples: what read_manifest returned.
            workers: processes that read and check the images.
            **kwargs: TFDS's, such as data_dir.
        """
        self._folder, self._workers = folder, workers
        self._samples = [sample for split in SPLITS for sample in samples if sample.split == split]
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, None))
        return self.dataset_info_from_configs(
            description=self.__doc__,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(doc="as in the manifest"),
                    "dimension": tfds.features.ClassLabel(names=DIMENSIONS, doc="what the candidates are judged by"),
                    "original": image,
                    "candidates": tfds.features.Sequence(image, doc="2 to 8 images; the first is option A"),
                    "answer": tfds.features.Text(
                        doc="sorted letters of the candidates that pass, such as AC, or nothing"
                    ),
                    "reasoning": tfds.features.Text(doc="chain of thought; nothing if there is none"),
                    "question": tfds.features.Text(doc="replaces the dimension's question; nothing if it stands"),
                }
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: tfds.download.DownloadManager, download_config: Any = None) -> None:
        self._digests: list[bytes] = []
        contents = read_contents(self._folder, self._samples, self._workers, decode=True)
        bar = tqdm(contents, total=len(self._samples), desc="building", unit="sample", disable=None)
        self._contents = iter(bar)
        try:
            super()._download_and_prepare(dl_manager, download_config)
        finally:
            contents.close()
            bar.close()
        rows = self._rows()
        self.info.metadata.update(
            fingerprint=fingerprint(self._digests),
            ids={split: [sample.id for sample in samples] for split, samples in rows.items()},
            dimensions={split: [DIMENSIONS.index(x.dimension) for x in samples] for split, samples in rows.items()},
            reasoned={split: [i for i, x in enumerate(samples) if x.reasoning] for split, samples in rows.items()},
        )

    def _rows(self) -> dict[str, list[Sample]]:
        rows = {split: [sample for sample in self._samples if sample.split == split] for split in SPLITS}
        return {split: samples for split, samples in rows.items() if samples}

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[Example]]]]:
        return {
            split: [functools.partial(self._generate_examples, shard) for shard in _shards(self._folder, samples)]
            for split, samples in self._rows().items()
        }

    def _generate_examples(self, samples: Sequence[Sample]) -> Iterator[Example]:
        # All shards draw from one stream of contents; TFDS writes them one after the other.
        for number, sample in enumerate(samples):
            content: Content = next(self._contents)
            self._digests.append(content.digest)
            original, *candidates = map(io.BytesIO, content.images)
            yield (
                number,
                {
                    "id": sample.id,
                    "dimension": sample.dimension,
                    "original": original,
                    "candidates": candidates,
                    "answer": "".join(sample.answer),
                    "reasoning": sample.reasoning or "",
                    "question": sample.question or "",
                },
            )


def _shards(folder: str, samples: list[Sample]) -> list[list[Sample]]:
    """Consecutive samples in shards of about SHARD_BYTES, by the file sizes of up to 64 of them."""
    some = samples[:: math.ceil(len(samples) / 64)]
    size = sum((epath.Path(folder) / image).stat().length for sample in some for image in sample.images)
    number = min(len(samples), math.ceil(size / len(some) * len(samples) / SHARD_BYTES) or 1)
    bounds = [round(len(samples) * i / number) for i in range(number + 1)]
    return [samples[start:end] for start, end in itertools.pairwise(bounds)]
