"""Answering a split's questions with a model, greedily."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.pipeline import Encoder, planned_batches
from aesthetic_jax.data.records import Record
from aesthetic_jax.rl.rewards import parse_answer
from aesthetic_jax.rl.scores import summarize
from aesthetic_jax.training.grpo import decode, gold_letters, rollout
from aesthetic_jax.training.state import Parameters


def make_greedy(graph: nnx.GraphDef, encoder: Encoder, max_length: int):
    """A compiled (parameters, batch, key) -> Rollout of one greedy completion a prompt."""
    settings = dict(group=1, max_length=max_length, temperature=0.0)
    tokens = dict(end_token=encoder.tokenizer.end, pad_token=encoder.tokenizer.pad)
    return jax.jit(functools.partial(rollout, graph=graph, **settings, **tokens))


def predict(
    greedy, parameters: Parameters, records: Sequence[Record], encoder: Encoder, batch_size: int, limit: int = 0
) -> list[dict[str, Any]]:
    """One prediction a record, in order, as predictions.jsonl has them.

    Args:
        greedy: of `make_greedy`.
        limit: number of records from the first on; 0: all.
    """
    count = min(limit or len(records), len(records))
    steps = math.ceil(count / batch_size)
    plan = np.resize(np.arange(count, dtype=np.int32), steps * batch_size)  # the last batch is filled up with the first
    predictions = []
    batches = planned_batches(records, plan, encoder, batch_size, with_completion=False)
    for batch in tqdm(batches, total=steps, desc="answering", unit="batch", disable=None):
        completions = decode(greedy(parameters, batch, jax.random.key(0)), encoder.tokenizer)
        for row, (completion,) in enumerate(completions):
            predicted = parse_answer(completion, int(batch.num_options[row]))
            predictions.append(
                {
                    "id": records[int(batch.index[row])].id,
                    "dimension": DIMENSIONS[batch.dimension[row]],
                    "completion": completion,
                    "predicted": None if predicted is None else sorted(predicted),
                    "answer": sorted(gold_letters(int(batch.answer[row]))),
                    "num_options": int(batch.num_options[row]),
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
