"""From records to batches: tiles, prompts and completions as arrays of few static shapes, in the order of a plan.

A plan is an immutable array of record indices. A batch depends on the records, the plan and its place in it alone, so a
run that is killed and resumed, or moved to another number of hosts, sees the same batches.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int, UInt8

from aesthetic_jax.data.images import decode_image, tile_image
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.errors import UserError


class Batch(NamedTuple):
    """Model inputs of B prompts; of one prompt before batching, then without the leading axis.

    `completion_ids` holds the taught completion and is empty (T = 0) where there is none.
    """

    tiles: UInt8[np.ndarray, "B N X X 3"]
    prompt_ids: Int[np.ndarray, "B P"]
    prompt_mask: Bool[np.ndarray, "B P"]
    completion_ids: Int[np.ndarray, "B 1 T"]
    completion_mask: Bool[np.ndarray, "B 1 T"]
    index: Int[np.ndarray, " B"]  # of the record: what noise and difficulty are keyed by
    answer: Int[np.ndarray, " B"]  # bit i is set where option i passes
    num_options: Int[np.ndarray, " B"]
    dimension: Int[np.ndarray, " B"]  # place in DIMENSIONS


@dataclasses.dataclass(frozen=True)
class Encoder:
    """How a record becomes arrays.

    Attributes:
        tile_size: side of an image tile in pixels.
        tokens_per_tile: image tokens that a tile takes.
        max_images: images of a prompt, the original included.
        max_tiles: tiles of one image, InternVL's dynamic tiling; a thumbnail comes on top where it is more than 1.
        prompt_buckets: prompt lengths that batches are padded to, ascending.
        completion_buckets: completion lengths that batches are padded to, ascending.
        system: system prompt, "" for none.
        final_newline: of `completion_text`.
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
        """Tiles N that every prompt is padded to."""
        return self.max_images * (self.max_tiles + (self.max_tiles > 1))

    def prompt(self, record: Record, name: str) -> tuple[UInt8[np.ndarray, "N X X 3"], list[int]]:
        """Tiles (not padded) and prompt ids of one record; `name` is what errors call it."""
        if len(record.images) > self.max_images:
            raise UserError(
                f"{name}: has {len(record.images)} images; raise data.max_images, which is {self.max_images}"
            )
        tiles = [
            tile_image(decode_image(image, f"{name}, image {i}"), self.tile_size, self.max_tiles)
            for i, image in enumerate(record.images, start=1)
        ]
        question = record.question or question_text(record.dimension, record.num_options)
        text = prompt_text(question, [len(x) for x in tiles], self.tokens_per_tile, self.system)
        return np.concatenate(tiles), self.tokenizer.encode(text)

    def __call__(self, record: Record, index: int, with_completion: bool) -> Batch:
        """One element, padded to the largest buckets.

        Raises:
            UserError: the record does not fit, or has no reasoning to be taught.
        """
        name = f"sample {record.id}"
        tiles, ids = self.prompt(record, name)
        completion = []
        if with_completion:
            if record.reasoning is None:
                raise UserError(f"{name}: has no reasoning to learn from; leave it out of SFT or write one")
            completion = self.tokenizer.encode(completion_text(record.reasoning, record.answer, self.final_newline))
        prompt_ids, prompt_mask = _pad(ids, self.prompt_buckets, "data.prompt_buckets", name, self.tokenizer.pad)
        buckets = self.completion_buckets if with_completion else (0,)
        completion_ids, completion_mask = _pad(completion, buckets, "data.completion_buckets", name, self.tokenizer.pad)
        missing = self.tiles_per_prompt - len(tiles)
        return Batch(
            tiles=np.pad(tiles, ((0, missing), (0, 0), (0, 0), (0, 0))),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids[None],
            completion_mask=completion_mask[None],
            index=np.int32(index),
            answer=np.int32(sum(1 << (ord(letter) - ord("A")) for letter in record.answer)),
            num_options=np.int32(record.num_options),
            dimension=np.int32(DIMENSIONS.index(record.dimension)),
        )


def _pad(ids: list[int], buckets: Sequence[int], field: str, name: str, pad: int):
    if len(ids) > buckets[-1]:
        raise UserError(f"{name}: takes {len(ids)} tokens; raise {field}, whose largest is {buckets[-1]}")
    fill = buckets[-1] - len(ids)
    return np.array(ids + [pad] * fill, np.int32), np.arange(buckets[-1]) < len(ids)


def trim(batch: Batch, buckets: Any, longest: tuple[int, int] | None = None) -> Batch:
    """Cuts a batch's padding down to the smallest buckets that hold it; few shapes, so few compilations.

    Args:
        batch: to cut.
        buckets: has `prompt_buckets` and `completion_buckets`, as an Encoder and a config's `data` have.
        longest: tokens of the longest prompt and completion that must fit, on any host; None: this batch's.
    """
    if longest is None:
        longest = tuple(int(mask.sum(-1).max(initial=0)) for mask in (batch.prompt_mask, batch.completion_mask))
    prompt = _bucket(longest[0], buckets.prompt_buckets)
    completion = _bucket(longest[1], buckets.completion_buckets)
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
    """Grain's view of a plan: element i is record plan[i]."""

    records: Sequence[Record]
    plan: Int[np.ndarray, " R"]
    encoder: Encoder
    with_completion: bool

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> Batch:
        index = int(self.plan[position])
        return self.encoder(self.records[index], index, self.with_completion)


def planned_batches(
    records: Sequence[Record],
    plan: Int[np.ndarray, " R"],
    encoder: Encoder,
    batch_size: int,
    *,
    with_completion: bool,
    rows: Int[np.ndarray, " b"] | None = None,
    start: int = 0,
    threads: int = 2,
) -> Iterator[Batch]:
    """Batches of a plan, from batch number `start` on.

    Args:
        batch_size: over all hosts; a last batch that is not full is left out.
        rows: which of every batch this host loads; None: all. Less than all are not trimmed: hosts must agree on lengths.
        threads: that read and decode ahead.
    """
    share = rows is not None and len(rows) < batch_size
    if share:
        plan = plan[: len(plan) // batch_size * batch_size].reshape(-1, batch_size)[:, rows].reshape(-1)
        batch_size = len(rows)
    dataset = grain.MapDataset.source(_PlannedRecords(records, plan, encoder, with_completion))
    shard = grain.sharding.ShardOptions(0, 1, drop_remainder=True)  # the plan holds this host's rows alone
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * batch_size)
    iterator = iter(grain.experimental.ElasticIterator(dataset, batch_size, shard, read_options=read))
    iterator.set_state({"global_next_index": start * batch_size})
    for batch in iterator:
        yield batch if share else trim(batch, encoder)


def epoch_plan(seed: int, round_index: int, candidates: Int[np.ndarray, " C"], length: int) -> Int[np.ndarray, " R"]:
    """The part of an endless shuffled pass over `candidates` that round number `round_index` of `length` covers.

    Every candidate comes once before any comes twice; each pass is shuffled anew by (seed, pass).
    """
    first = round_index * length
    size = len(candidates)
    passes = range(first // size, (first + length - 1) // size + 1)
    order = np.concatenate([np.random.default_rng((seed, number)).permutation(candidates) for number in passes])
    return order[first - passes[0] * size :][:length].astype(np.int32)
