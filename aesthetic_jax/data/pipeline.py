"""From records to batches: tiles, prompts and completions as arrays of a few static shapes.

A plan is an immutable array of record indices. A batch depends only on the records, the plan and
its position in the plan, so a run that is killed and resumed, or moved to another number of hosts,
sees the same batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from aesthetic_jax.data.answers import answer_mask
from aesthetic_jax.data.images import decode_image, tile_image
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.errors import UserError


class Example(NamedTuple):
    """Model inputs of one prompt. Without a training completion, T = 0."""

    tiles: UInt8[np.ndarray, "N X X 3"]
    prompt_ids: Int[np.ndarray, " P"]
    prompt_mask: Bool[np.ndarray, " P"]
    completion_ids: Int[np.ndarray, "1 T"]
    completion_mask: Bool[np.ndarray, "1 T"]
    index: np.int32  # index of the record; keys noise and difficulty
    answer: np.int32  # bit i is set where option i passes, as `answer_mask` has it
    num_options: np.int32
    dimension: np.int32  # index into DIMENSIONS


class Batch(NamedTuple):
    """Model inputs of B prompts: the fields of `Example` with a leading axis, and `features`.

    NumPy arrays when loaded, JAX arrays once they are on a mesh.
    """

    tiles: UInt8[Any, "B N X X 3"] | None  # None only where `features` are given
    prompt_ids: Int[Any, "B P"]
    prompt_mask: Bool[Any, "B P"]
    completion_ids: Int[Any, "B 1 T"]
    completion_mask: Bool[Any, "B 1 T"]
    index: Int[Any, " B"]
    answer: Int[Any, " B"]
    num_options: Int[Any, " B"]
    dimension: Int[Any, " B"]
    features: Float[Any, "B N Q C"] | None = None  # of the vision tower, used in place of tiles


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Turns a record into arrays.

    Attributes:
        tokenizer: the model's tokenizer.
        tile_size: side X of an image tile in pixels.
        tokens_per_tile: image tokens per tile.
        max_images: most images of a prompt, the original included.
        max_tiles: most tiles per image (InternVL's dynamic tiling). Above 1, an image of several
            tiles gets a thumbnail in addition.
        prompt_buckets: prompt lengths that batches are padded to, ascending.
        completion_buckets: completion lengths that batches are padded to, ascending.
        system: system prompt, "" for none.
        final_newline: as in `completion_text`.
    """

    tokenizer: ChatTokenizer
    tile_size: int
    tokens_per_tile: int
    max_images: int
    max_tiles: int
    prompt_buckets: tuple[int, ...]
    completion_buckets: tuple[int, ...]
    system: str = ""
    final_newline: bool = False

    @property
    def tiles_per_prompt(self) -> int:
        """Number of tiles N that every prompt is padded to."""
        return self.max_images * (self.max_tiles + (self.max_tiles > 1))

    def prompt(self, record: Record, name: str) -> tuple[UInt8[np.ndarray, "N X X 3"], list[int]]:
        """Tiles and prompt ids of one record, not padded; errors call the record `name`."""
        if len(record.images) > self.max_images:
            raise UserError(
                f"{name}: has {len(record.images)} images; "
                f"raise data.max_images, which is {self.max_images}"
            )
        tiles = [
            tile_image(decode_image(image, f"{name}, image {i}"), self.tile_size, self.max_tiles)
            for i, image in enumerate(record.images, start=1)
        ]
        question = record.question or question_text(record.dimension, record.num_options)
        text = prompt_text(question, [len(x) for x in tiles], self.tokens_per_tile, self.system)
        return np.concatenate(tiles), self.tokenizer.encode(text)

    def __call__(self, record: Record, index: int, with_completion: bool) -> Example:
        """One record as an example, padded to the largest buckets.

        Args:
            record: the sample.
            index: its index in the records.
            with_completion: whether to add the record's reasoning and answer as completion.

        Raises:
            UserError: the record doesn't fit, or has no reasoning to train on.
        """
        name = f"sample {record.id}"
        tiles, prompt = self.prompt(record, name)
        completion = []
        if with_completion:
            if record.reasoning is None:
                raise UserError(f"{name}: has no reasoning to teach; write one or leave it out")
            text = completion_text(record.reasoning, record.answer, self.final_newline)
            completion = self.tokenizer.encode(text)
        pad = self.tokenizer.pad
        prompt_ids, prompt_mask = _pad(
            prompt, self.prompt_buckets[-1], pad, f"{name}: its prompt", "data.prompt_buckets"
        )
        completion_ids, completion_mask = _pad(
            completion,
            self.completion_buckets[-1] if with_completion else 0,
            pad,
            f"{name}: its completion",
            "data.completion_buckets",
        )
        missing_tiles = self.tiles_per_prompt - len(tiles)
        return Example(
            tiles=np.pad(tiles, ((0, missing_tiles), (0, 0), (0, 0), (0, 0))),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids[None],
            completion_mask=completion_mask[None],
            index=np.int32(index),
            answer=np.int32(answer_mask(record.answer)),
            num_options=np.int32(record.num_options),
            dimension=np.int32(DIMENSIONS.index(record.dimension)),
        )


def _pad(
    ids: list[int], length: int, pad: int, name: str, field: str
) -> tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
    """Token ids padded to a length, and the mask of the real ones; errors name the config field."""
    if len(ids) > length:
        raise UserError(f"{name} has {len(ids)} tokens; raise {field}, whose largest is {length}")
    padded = np.array(ids + [pad] * (length - len(ids)), np.int32)
    return padded, np.arange(length) < len(ids)


def trim(batch: Batch, buckets: Any, longest: tuple[int, int] | None = None) -> Batch:
    """Cuts a batch's padding down to the smallest buckets that hold it.

    Buckets limit the number of shapes, and so of compilations.

    Args:
        batch: the batch to trim.
        buckets: a Preprocessor or a config's `data`, for its `prompt_buckets` and
            `completion_buckets`.
        longest: tokens of the longest prompt and completion on any host; None: of this batch.
    """
    if longest is None:
        prompts, completions = (
            int(mask.sum(-1).max(initial=0)) for mask in (batch.prompt_mask, batch.completion_mask)
        )
    else:
        prompts, completions = longest
    prompt = _bucket(prompts, buckets.prompt_buckets)
    completion = _bucket(completions, buckets.completion_buckets)
    return batch._replace(
        prompt_ids=batch.prompt_ids[..., :prompt],
        prompt_mask=batch.prompt_mask[..., :prompt],
        completion_ids=batch.completion_ids[..., :completion],
        completion_mask=batch.completion_mask[..., :completion],
    )


def _bucket(longest: int, buckets: Sequence[int]) -> int:
    return next(bucket for bucket in (0, *buckets) if longest <= bucket)


@dataclasses.dataclass(frozen=True)
class _PlannedRecords:
    """A plan as a Grain source: element i is the example of record plan[i]."""

    records: Sequence[Record]
    plan: Int[np.ndarray, " R"]
    preprocessor: Preprocessor
    with_completion: bool

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: SupportsIndex) -> Example:
        record_index = int(self.plan[index])
        return self.preprocessor(self.records[record_index], record_index, self.with_completion)


def planned_batches(
    records: Sequence[Record],
    plan: Int[np.ndarray, " R"],
    preprocessor: Preprocessor,
    batch_size: int,
    *,
    with_completion: bool,
    rows: Int[np.ndarray, " b"] | None = None,
    start: int = 0,
    threads: int = 2,
) -> Iterator[Batch]:
    """Batches of a plan, from batch number `start` on.

    Args:
        records: the records that the plan indexes.
        plan: record indices in the order they are shown.
        preprocessor: turns records into arrays.
        batch_size: samples per batch, over all hosts; an incomplete last batch is dropped.
        with_completion: whether to add reasoning and answers as completions.
        rows: which rows of every batch this host loads; None: all. A host's share is not trimmed,
            since hosts must agree on lengths.
        start: number of the first batch.
        threads: number of threads that read and decode ahead.
    """
    rows = np.arange(batch_size) if rows is None else rows
    is_share = len(rows) < batch_size
    if is_share:
        whole_batches = plan[: len(plan) // batch_size * batch_size].reshape(-1, batch_size)
        plan, batch_size = whole_batches[:, rows].reshape(-1), len(rows)
    dataset = grain.MapDataset.source(_PlannedRecords(records, plan, preprocessor, with_completion))
    # A single shard: the plan already holds only this host's rows.
    shard = grain.sharding.ShardOptions(0, 1, drop_remainder=True)
    prefetched = 2 * batch_size
    read = grain.ReadOptions(num_threads=min(threads, prefetched), prefetch_buffer_size=prefetched)
    iterator = iter(
        grain.experimental.ElasticIterator(dataset, batch_size, shard, read_options=read)
    )
    iterator.set_state({"global_next_index": start * batch_size})
    for stacked in iterator:
        batch = Batch(*stacked)
        yield batch if is_share else trim(batch, preprocessor)


def epoch_plan(
    seed: int, round_index: int, eligible: Int[np.ndarray, " E"], length: int
) -> Int[np.ndarray, " R"]:
    """The plan of round `round_index`, of `length` samples, cut from endless shuffled epochs.

    Every eligible sample comes once before any comes twice; each epoch is shuffled anew by
    (seed, epoch).

    Args:
        seed: seed of the order.
        round_index: from 0.
        eligible: indices of the samples to show.
        length: samples per round.
    """
    first = round_index * length
    size = len(eligible)
    epochs = range(first // size, (first + length - 1) // size + 1)
    order = np.concatenate(
        [np.random.default_rng((seed, epoch)).permutation(eligible) for epoch in epochs]
    )
    return order[first - epochs[0] * size :][:length].astype(np.int32)
