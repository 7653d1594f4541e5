"""What is in a data set: every sample is read and every image decoded once, and the facts are kept in compact arrays."""

import collections
import concurrent.futures
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from aesthetic_jax.data.images import FORMATS, decode_image, image_format, tile_grid
from aesthetic_jax.data.manifest import DIMENSIONS, OPTIONS, SPLITS, place_name
from aesthetic_jax.data.perceptual_hash import describe_image
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record, Records
from aesthetic_jax.errors import UserError

if TYPE_CHECKING:  # its module imports JAX, which only counting tokens needs
    from aesthetic_jax.data.pipeline import Encoder

_SAMPLE = np.dtype(
    [
        ("split", "i1"),  # place in SPLITS
        ("row", "i4"),  # place in the split's records
        ("dimension", "i1"),  # place in DIMENSIONS
        ("options", "i1"),
        ("answer", "u1"),  # bit i is set where option i passes
        ("reasoning", "?"),
        ("question", "?"),  # has one of its own
        ("tiles", "i4"),  # -1: not counted, as of the next two
        ("prompt_tokens", "i4"),
        ("completion_tokens", "i4"),
    ]
)
_IMAGE = np.dtype(
    [
        ("sample", "i4"),
        ("place", "i1"),  # 0 the original, 1 option A
        ("format", "i1"),  # place in FORMATS; -1: can't be decoded
        ("width", "i4"),
        ("height", "i4"),
        ("bytes", "i8"),
        ("file", "u8"),  # digest of the encoded bytes; equal by chance in one of 10^7 data sets of 10^6 images
        ("hash", "u8"),
        ("colours", "u1", 48),
    ]
)
MOST_SIZES = 20  # image sizes that are counted by name, the commonest; the others together


class Survey(NamedTuple):
    """The facts of a data set; about 0.5 kB a sample of five images.

    Attributes:
        ids: of the samples.
        samples: one row (of _SAMPLE) a sample.
        images: one row (of _IMAGE) an image, in the samples' order.
        rejects: {"name", "error"} of what can't be read: SPLIT/ID of a sample, of which then nothing is counted, or
            SPLIT/ID/PLACE of an image.
    """

    ids: list[str]
    samples: np.ndarray
    images: np.ndarray
    rejects: list[dict[str, str]]

    def sample_name(self, index: int) -> str:
        """SPLIT/ID of a sample."""
        return f"{SPLITS[self.samples['split'][index]]}/{self.ids[index]}"

    def image_name(self, index: int) -> str:
        """SPLIT/ID/original or SPLIT/ID/LETTER of an image."""
        sample, place = self.images["sample"][index], self.images["place"][index]
        return f"{self.sample_name(sample)}/{place_name(place)}"


def survey(
    splits: Mapping[str, Records],
    encoder: "Encoder | None" = None,
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Survey:
    """Looks at every sample; each worker holds one sample's encoded images and one decoded image.

    Args:
        encoder: counts tiles and tokens; None: they are not counted.
        workers: threads; decoding, scaling and tokenising leave Python's lock.
        progress: wraps the samples as they come, and is told how many there are.
    """
    numbered = [(split, records, *item) for split, records in splits.items() for item in enumerate(records.ids())]
    ids, samples, images, rejects = [], bytearray(), bytearray(), []
    examined = _ordered_map(functools.partial(_examine, encoder=encoder), numbered, workers)
    for name, facts, rows, faults in progress(examined, len(numbered)):
        rejects += faults
        if facts is None:
            continue
        rows["sample"] = len(ids)
        ids.append(name)
        samples += facts.tobytes()
        images += rows.tobytes()
    return Survey(ids, np.frombuffer(samples, _SAMPLE), np.frombuffer(images, _IMAGE), rejects)


def _ordered_map(function: Callable, items: Sequence, workers: int) -> Iterator:
    """Results in order, of threads that run ahead by two items each."""
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


def _examine(item: tuple[str, Records, int, str], encoder: "Encoder | None") -> tuple:
    """(id, row of _SAMPLE or None, rows of _IMAGE, rejects) of one sample, given as (split, records, index, id)."""
    split, records, index, name = item
    try:
        record = records[index]
    except (UserError, RuntimeError) as error:  # ArrayRecord's for damaged files
        reason = " ".join(str(error).split())[:200]
        return name, None, None, [{"name": f"{split}/{name}", "error": reason}]
    rows, faults = np.zeros(len(record.images), _IMAGE), []
    for place, data in enumerate(record.images):
        row = rows[place]
        row["place"], row["format"], row["bytes"] = place, -1, len(data)
        row["file"] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        try:
            image = decode_image(data, records.image_name(index, place))
        except UserError as error:
            faults.append({"name": f"{split}/{name}/{place_name(place)}", "error": str(error)})
            continue
        row["format"] = FORMATS.index(image_format(data))
        row["width"], row["height"] = image.size
        row["hash"], row["colours"] = describe_image(image)
    facts = np.zeros((), _SAMPLE)
    facts["split"], facts["dimension"] = SPLITS.index(split), DIMENSIONS.index(record.dimension)
    facts["row"], facts["options"] = index, record.num_options
    facts["answer"] = sum(1 << OPTIONS.index(letter) for letter in record.answer)
    facts["reasoning"], facts["question"] = record.reasoning is not None, record.question is not None
    facts["tiles"], facts["prompt_tokens"], facts["completion_tokens"] = -1, -1, -1
    if encoder is not None and not faults:
        sizes = [(int(row["width"]), int(row["height"])) for row in rows]
        facts["tiles"], facts["prompt_tokens"], completion = count_tokens(encoder, record, sizes)
        facts["completion_tokens"] = -1 if completion is None else completion
    return name, facts, rows, faults


def count_tokens(encoder: "Encoder", record: Record, sizes: Sequence[tuple[int, int]]) -> tuple[int, int, int | None]:
    """Tiles, prompt tokens and completion tokens (None without reasoning) that an encoder makes of a record.

    Args:
        sizes: width and height of its images.
    """
    grids = [tile_grid(*size, encoder.tile_size, 1, encoder.max_tiles) for size in sizes]
    tiles = sum(columns * rows + (columns * rows > 1) for columns, rows in grids)  # with thumbnails
    question = record.question or question_text(record.dimension, record.num_options)
    # Image tokens are special: none of them merges with another, so there is no need to encode them.
    text = prompt_text(question, [0] * len(sizes), encoder.tokens_per_tile, encoder.system)
    prompt = len(encoder.tokenizer.encode(text)) + tiles * encoder.tokens_per_tile
    if record.reasoning is None:
        return tiles, prompt, None
    return (
        tiles,
        prompt,
        len(encoder.tokenizer.encode(completion_text(record.reasoning, record.answer, encoder.final_newline))),
    )


def summarize(data: Survey, chosen: Bool[np.ndarray, " n"], encoder: "Encoder | None" = None) -> dict[str, Any]:
    """Statistics of the chosen samples, as JSON.

    Args:
        encoder: says what is too large for it; None: left out.

    Returns:
        `samples`; `dimensions`, `options`, `answers` {value: samples}, answers by falling number; `passing` {letter: share of the
        samples with that option where it passes}; `reasoning` (share of samples); `questions` (share that have their own);
        `images`; `unreadable_images`; `formats` {format: images}; `sizes` {WIDTHxHEIGHT: images}, the commonest and "other";
        `width`, `height`, `bytes` of images, `tiles`, `prompt_tokens`, `completion_tokens` of samples, each as
        {"count", "mean", "min", "p50", "p95", "max"} or null where nothing was counted; `total_bytes`; and with an encoder
        `too_large` {"images", "prompt", "completion": samples that training would refuse}.
    """
    samples = data.samples[chosen]
    images = data.images[chosen[data.images["sample"]]]
    readable = images[images["format"] >= 0]
    options, answer = samples["options"], samples["answer"]
    asked = {letter: options > i for i, letter in enumerate(OPTIONS[: options.max(initial=0)])}
    summary = {
        "samples": len(samples),
        "dimensions": {name: int((samples["dimension"] == i).sum()) for i, name in enumerate(DIMENSIONS)},
        "options": _counts(options, str),
        "answers": _counts(answer, _letters),
        "passing": {x: float(np.mean(answer[has] >> i & 1)) for i, (x, has) in enumerate(asked.items())},
        "reasoning": _share(samples["reasoning"]),
        "questions": _share(samples["question"]),
        "images": len(images),
        "unreadable_images": len(images) - len(readable),
        "formats": _counts(readable["format"], FORMATS.__getitem__),
        "sizes": _sizes(readable),
        "width": _spread(readable["width"]),
        "height": _spread(readable["height"]),
        "bytes": _spread(images["bytes"]),
        "total_bytes": int(images["bytes"].sum()),
    }
    counted = {name: samples[name][samples[name] >= 0] for name in ("tiles", "prompt_tokens", "completion_tokens")}
    summary |= {name: _spread(values) for name, values in counted.items()}
    if encoder is not None:
        limits = (
            ("images", options + 1, encoder.max_images),
            ("prompt", counted["prompt_tokens"], encoder.prompt_buckets[-1]),
            ("completion", counted["completion_tokens"], encoder.completion_buckets[-1]),
        )
        summary["too_large"] = {name: int((values > limit).sum()) for name, values, limit in limits}
    return summary


def _letters(answer: int) -> str:
    return ",".join(letter for i, letter in enumerate(OPTIONS) if answer >> i & 1) or "None"


def _counts(values: np.ndarray, name: Callable[[int], str]) -> dict[str, int]:
    """{name of a value: how often it comes}, the commonest first."""
    found, counts = np.unique(values, return_counts=True)
    return {name(int(found[i])): int(counts[i]) for i in np.argsort(-counts, kind="stable")}


def _sizes(images: np.ndarray) -> dict[str, int]:
    counts = _counts(images["width"].astype(np.int64) << 32 | images["height"], lambda x: f"{x >> 32}x{x & 0xFFFFFFFF}")
    if len(counts) <= MOST_SIZES:
        return counts
    shown = dict(list(counts.items())[:MOST_SIZES])
    return shown | {"other": len(images) - sum(shown.values())}


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _spread(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    middle, high = np.percentile(values, (50, 95), method="inverted_cdf")
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "min": int(values.min()),
        "p50": int(middle),
        "p95": int(high),
        "max": int(values.max()),
    }
