"""A survey of a data set: reads every sample, decodes every image, keeps the facts in arrays."""

import collections
import concurrent.futures
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from aesthetic_jax.data.answers import answer_mask
from aesthetic_jax.data.images import FORMATS, decode_image, image_format, tile_grid
from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, image_role
from aesthetic_jax.data.perceptual_hash import describe_image
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record, Records
from aesthetic_jax.errors import UserError

if TYPE_CHECKING:  # its module imports JAX, which only counting tokens needs
    from aesthetic_jax.data.pipeline import Preprocessor

_SAMPLE = np.dtype(
    [
        ("split", "i1"),  # index into SPLITS
        ("row", "i4"),  # index into the split's records
        ("dimension", "i1"),  # index into DIMENSIONS
        ("options", "i1"),  # number of candidates
        ("answer", "u1"),  # as `answer_mask` has it
        ("reasoning", "?"),  # whether it has one
        ("question", "?"),  # whether it has one of its own
        ("tiles", "i4"),  # -1 where not counted, also in the next two
        ("prompt_tokens", "i4"),
        ("completion_tokens", "i4"),
    ]
)
_IMAGE = np.dtype(
    [
        ("sample", "i4"),  # index into the survey's samples
        ("position", "i1"),  # 0 the original, 1 option A
        ("format", "i1"),  # index into FORMATS; -1: can't be decoded
        ("width", "i4"),
        ("height", "i4"),
        ("bytes", "i8"),
        # Digest of the encoded bytes: among 10^6 images, P(any collision) is about 10^-7.
        ("file", "u8"),
        ("hash", "u8"),
        ("colours", "u1", 48),
    ]
)


class Survey(NamedTuple):
    """The facts of a data set, in about 0.5 kB per sample of five images.

    Attributes:
        ids: the samples' ids.
        samples: one row (of _SAMPLE) per sample.
        images: one row (of _IMAGE) per image, in the samples' order.
        rejects: {"name", "error"} of each unreadable sample (SPLIT/ID; not counted at all) or image
            (SPLIT/ID/ROLE).
    """

    ids: list[str]
    samples: np.ndarray
    images: np.ndarray
    rejects: list[dict[str, str]]

    def sample_name(self, index: SupportsIndex) -> str:
        """SPLIT/ID of a sample."""
        return f"{SPLITS[self.samples['split'][index]]}/{self.ids[index]}"

    def image_name(self, index: SupportsIndex) -> str:
        """SPLIT/ID/original or SPLIT/ID/LETTER of an image."""
        image = self.images[index]
        return f"{self.sample_name(image['sample'])}/{image_role(int(image['position']))}"


class _Findings(NamedTuple):
    """One sample's part of a survey; `sample` and `images` are None if it can't be read."""

    id: str
    sample: np.ndarray | None
    images: np.ndarray | None
    rejects: list[dict[str, str]]


def survey(
    splits: Mapping[str, Records],
    preprocessor: "Preprocessor | None" = None,
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Survey:
    """Examines every sample; a worker holds one sample's files and one decoded image at a time.

    Args:
        splits: the records of each split.
        preprocessor: counts tiles and tokens; None: they are not counted.
        workers: threads; decoding, scaling and tokenising release the interpreter's lock.
        progress: wraps the stream of samples, given their number.
    """
    rows = [
        (split, records, index, name)
        for split, records in splits.items()
        for index, name in enumerate(records.ids())
    ]
    examine = functools.partial(_examine, preprocessor=preprocessor)
    ids, samples, images, rejects = [], bytearray(), bytearray(), []
    for found in progress(_ordered_map(examine, rows, workers), len(rows)):
        rejects += found.rejects
        if found.sample is None:
            continue
        found.images["sample"] = len(ids)
        ids.append(found.id)
        samples += found.sample.tobytes()
        images += found.images.tobytes()
    return Survey(ids, np.frombuffer(samples, _SAMPLE), np.frombuffer(images, _IMAGE), rejects)


def _ordered_map(function: Callable[[Any], Any], items: Sequence, workers: int) -> Iterator:
    """Results in order, from threads that run ahead by two items each."""
    if workers == 1:
        yield from map(function, items)
        return
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    pending = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _examine(row: tuple[str, Records, int, str], preprocessor: "Preprocessor | None") -> _Findings:
    """Examines one sample, given as (split, records, index, id)."""
    split, records, index, name = row
    try:
        record = records[index]
    except (UserError, RuntimeError) as error:  # ArrayRecord raises the latter for damaged files
        reason = " ".join(str(error).split())[:200]
        return _Findings(name, None, None, [{"name": f"{split}/{name}", "error": reason}])
    images, rejects = np.zeros(len(record.images), _IMAGE), []
    for position, data in enumerate(record.images):
        images[position]["position"] = position
        try:
            _describe_file(images[position], data, records.image_name(index, position))
        except UserError as error:
            image = f"{split}/{name}/{image_role(position)}"
            rejects.append({"name": image, "error": str(error)})
    sample = np.zeros((), _SAMPLE)
    sample["split"], sample["row"] = SPLITS.index(split), index
    sample["dimension"] = DIMENSIONS.index(record.dimension)
    sample["options"], sample["answer"] = record.num_options, answer_mask(record.answer)
    sample["reasoning"] = record.reasoning is not None
    sample["question"] = record.question is not None
    counts = -1, -1, None
    if preprocessor is not None and not rejects:
        sizes = [(int(image["width"]), int(image["height"])) for image in images]
        counts = count_tokens(preprocessor, record, sizes)
    sample["tiles"], sample["prompt_tokens"], completion_tokens = counts
    sample["completion_tokens"] = -1 if completion_tokens is None else completion_tokens
    return _Findings(name, sample, images, rejects)


def _describe_file(row: np.void, data: bytes, name: str) -> None:
    """Fills a row of _IMAGE from an encoded image; without its pixels if UserError is raised."""
    row["format"], row["bytes"] = -1, len(data)
    row["file"] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    image = decode_image(data, name)
    row["format"] = FORMATS.index(image_format(data))
    row["width"], row["height"] = image.size
    row["hash"], row["colours"] = describe_image(image)


def count_tokens(
    preprocessor: "Preprocessor", record: Record, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int, int | None]:
    """Number of tiles, prompt tokens and completion tokens that a preprocessor makes from a record.

    Args:
        preprocessor: a config's preprocessor.
        record: a sample.
        sizes: width and height of each of its images.

    Returns:
        (tiles, prompt tokens, completion tokens); None for the last without reasoning.
    """
    grids = [tile_grid(*size, preprocessor.tile_size, 1, preprocessor.max_tiles) for size in sizes]
    tiles = sum(columns * rows + (columns * rows > 1) for columns, rows in grids)  # + thumbnails
    question = record.question or question_text(record.dimension, record.num_options)
    # Image tokens are special tokens, which never merge with their neighbours: adding their number
    # gives what encoding them would.
    text = prompt_text(
        question, [0] * len(sizes), preprocessor.tokens_per_tile, preprocessor.system
    )
    prompt = len(preprocessor.tokenizer.encode(text)) + tiles * preprocessor.tokens_per_tile
    if record.reasoning is None:
        return tiles, prompt, None
    completion = completion_text(record.reasoning, record.answer, preprocessor.final_newline)
    return tiles, prompt, len(preprocessor.tokenizer.encode(completion))
