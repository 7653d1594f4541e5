"""Samples completions of a split's prompts, batch by batch, on every device of every host."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key
from ml_collections import ConfigDict
from tqdm import tqdm

from aesthetic_jax.data.answers import mask_letters
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.pipeline import Batch, Preprocessor, planned_batches, trim
from aesthetic_jax.data.records import Record
from aesthetic_jax.models.internvl import Parameters
from aesthetic_jax.rl.rollouts import Sampling, decode, rollout
from aesthetic_jax.training.mesh import (
    gather_rows,
    local_rows,
    put_rows,
    rows_sharding,
    take_local,
)


class Sampler(NamedTuple):
    """A compiled rollout, and the settings of its input batches."""

    program: Callable  # (parameters, batch on the mesh, key) -> Rollout
    preprocessor: Preprocessor
    mesh: Mesh
    batch_size: int  # prompts per batch, over all hosts
    threads: int  # that read and decode ahead
    key: Key[Array, ""]


def make_sampler(
    config: ConfigDict,
    graph: nnx.GraphDef,
    preprocessor: Preprocessor,
    mesh: Mesh,
    *,
    batch_size: int,
    group: int = 1,
    temperature: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Sampler:
    """The sampler of a model; greedy by default.

    Args:
        config: gives `max_completion_length`, `data.threads` and `mesh.replicate_for_rollout`.
        batch_size: prompts sampled at once, over all hosts.
        group: completions per prompt, G.
        temperature: as in `Sampling`.
        key: key of the noise; None if decoding is greedy.
    """
    sampling = Sampling(
        group=group,
        max_length=config.max_completion_length,
        end_token=preprocessor.tokenizer.end,
        pad_token=preprocessor.tokenizer.pad,
        temperature=temperature,
    )
    replicate = config.mesh.replicate_for_rollout
    program = jax.jit(
        functools.partial(rollout, graph=graph, sampling=sampling, replicate=replicate),
        out_shardings=rows_sharding(mesh),
    )
    key = jax.random.key(0) if key is None else key
    return Sampler(program, preprocessor, mesh, batch_size, config.data.threads, key)


def sample(
    sampler: Sampler, parameters: Parameters, local_batch: Batch
) -> tuple[Int[np.ndarray, "B G T"], Bool[np.ndarray, "B G T"]]:
    """Ids and mask of the completions of all hosts' prompts, on every host.

    Args:
        local_batch: this host's rows.
    """
    mesh = sampler.mesh
    longest = int(gather_rows(mesh, local_batch.prompt_mask.sum(1)).max())
    with jax.set_mesh(mesh):
        batch = put_rows(mesh, trim(local_batch, sampler.preprocessor, (longest, 0)))
        result = sampler.program(parameters, batch, sampler.key)
    return gather_rows(mesh, (take_local(result.ids), take_local(result.mask)))


def num_batches(sampler: Sampler, count: int) -> int:
    """Batches that so many samples take."""
    return math.ceil(count / sampler.batch_size)


def sample_records(
    sampler: Sampler,
    parameters: Parameters,
    records: Sequence[Record],
    ids: Sequence[str],
    *,
    indices: Int[np.ndarray, " R"] | None = None,
    first_batch: int = 0,
    title: str = "sampling",
) -> Iterator[list[dict[str, Any]]]:
    """Samples records in order; yields a batch's rows, the same on every host.

    Args:
        ids: ids of the records to sample.
        indices: indices of these records; None: from the first on.
        first_batch: number of the batch to start with; noise is keyed by the sample, so the
            completions are the same wherever one starts.
        title: title of the progress bar.

    Yields:
        {"id", "dimension", "answer", "num_options", "completions"} for each sample of a batch.
    """
    batches = num_batches(sampler, len(ids))
    # The first samples fill up the last batch.
    indices = np.arange(len(ids)) if indices is None else indices
    plan = np.resize(indices.astype(np.int32), batches * sampler.batch_size)
    loaded = planned_batches(
        records,
        plan,
        sampler.preprocessor,
        sampler.batch_size,
        with_completion=False,
        rows=local_rows(sampler.mesh, sampler.batch_size),
        start=first_batch,
        threads=sampler.threads,
    )
    silent = True if jax.process_index() else None
    progress = tqdm(
        loaded, total=batches, initial=first_batch, desc=title, unit="batch", disable=silent
    )
    for number, local_batch in enumerate(progress, start=first_batch):
        texts = decode(*sample(sampler, parameters, local_batch), sampler.preprocessor.tokenizer)
        names = ("answer", "num_options", "dimension")
        facts = gather_rows(sampler.mesh, {name: getattr(local_batch, name) for name in names})
        start = number * sampler.batch_size
        yield [
            {
                "id": name,
                "dimension": DIMENSIONS[facts["dimension"][row]],
                "answer": sorted(mask_letters(int(facts["answer"][row]))),
                "num_options": int(facts["num_options"][row]),
                "completions": texts[row],
            }
            for row, name in enumerate(ids[start : start + sampler.batch_size])
        ]
