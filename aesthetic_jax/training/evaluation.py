"""Answering a split's questions with a model, greedily."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key
from tqdm import tqdm

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.pipeline import Batch, Encoder, planned_batches, trim
from aesthetic_jax.data.records import Record
from aesthetic_jax.rl.rewards import parse_answer
from aesthetic_jax.rl.scores import summarize
from aesthetic_jax.training.grpo import decode, gold_letters, rollout
from aesthetic_jax.training.mesh import gather_rows, local_rows, put_rows, rows_sharding, take_local
from aesthetic_jax.training.state import Parameters


def make_sampler(
    graph: nnx.GraphDef,
    encoder: Encoder,
    max_length: int,
    mesh: Mesh,
    group: int = 1,
    temperature: float = 0.0,
    hold_layers: bool = True,
) -> Callable[[Parameters, Batch, Key[Array, ""]], tuple[np.ndarray, np.ndarray]]:
    """(parameters, a host's batch, key) -> ids and mask [B, G, T] of completions of every host's prompts; greedy by default.

    Args:
        graph: of the model.
        encoder: that makes the batches.
        max_length: tokens of a completion at most.
        mesh: that parameters and rows are split over.
        group: completions G of each prompt.
        temperature: as in `sample_completions`.
        hold_layers: `config.mesh.hold_layers`.
    """
    settings = dict(group=group, max_length=max_length, temperature=temperature, hold_layers=hold_layers)
    tokens = dict(end_token=encoder.tokenizer.end, pad_token=encoder.tokenizer.pad)
    compiled = jax.jit(functools.partial(rollout, graph=graph, **settings, **tokens), out_shardings=rows_sharding(mesh))

    def sample(parameters: Parameters, batch: Batch, key: Key[Array, ""]) -> tuple[np.ndarray, np.ndarray]:
        longest = int(gather_rows(mesh, batch.prompt_mask.sum(1)).max())
        with jax.set_mesh(mesh):
            result = compiled(parameters, put_rows(mesh, trim(batch, encoder, (longest, 0))), key)
        return gather_rows(mesh, (take_local(result.ids), take_local(result.mask)))

    return sample


def predict(
    greedy,
    parameters: Parameters,
    records: Sequence[Record],
    encoder: Encoder,
    batch_size: int,
    mesh: Mesh,
    limit: int = 0,
) -> list[dict[str, Any]]:
    """One prediction a record, in order, as predictions.jsonl has them; the same on every host.

    Args:
        greedy: of `make_sampler`.
        parameters: of the model.
        records: to answer.
        encoder: as given to `make_sampler`.
        batch_size: prompts answered at once, over all hosts.
        mesh: as given to `make_sampler`.
        limit: number of records from the first on; 0: all.
    """
    count = min(limit or len(records), len(records))
    steps = math.ceil(count / batch_size)
    plan = np.resize(np.arange(count, dtype=np.int32), steps * batch_size)  # the last batch is filled up with the first
    predictions = []
    rows = local_rows(mesh, batch_size)
    batches = planned_batches(records, plan, encoder, batch_size, with_completion=False, rows=rows)
    silent = True if jax.process_index() else None
    for batch in tqdm(batches, total=steps, desc="answering", unit="batch", disable=silent):
        completions = decode(*greedy(parameters, batch, jax.random.key(0)), encoder.tokenizer)
        names = ("index", "answer", "num_options", "dimension")
        told = gather_rows(mesh, {name: getattr(batch, name) for name in names})
        for row, (completion,) in enumerate(completions):
            predicted = parse_answer(completion, int(told["num_options"][row]))
            predictions.append(
                {
                    "id": records[int(told["index"][row])].id,
                    "dimension": DIMENSIONS[told["dimension"][row]],
                    "completion": completion,
                    "predicted": None if predicted is None else sorted(predicted),
                    "answer": sorted(gold_letters(int(told["answer"][row]))),
                    "num_options": int(told["num_options"][row]),
                }
            )
    return predictions[:count]


def summarize_predictions(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of `predict`'s rows in the form of metrics.json."""
    return summarize(
        [row["dimension"] for row in predictions],
        [None if row["predicted"] is None else frozenset(row["predicted"]) for row in predictions],
        [frozenset(row["answer"]) for row in predictions],
        [row["num_options"] for row in predictions],
    )
