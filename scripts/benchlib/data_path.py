"""Benchmarks of the data path: loading samples, and online mining without the model."""

import pathlib
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from aesthetic_jax.checkpoints import runs
from aesthetic_jax.data import dataset, hard_cases
from aesthetic_jax.data.manifest import DIMENSIONS, Sample
from aesthetic_jax.data.pipeline import Batch, Preprocessor, epoch_plan, planned_batches
from aesthetic_jax.data.prompts import question_text
from aesthetic_jax.data.records import Records, open_records
from aesthetic_jax.data.tokenizer import train_tokenizer
from aesthetic_jax.training.config import grpo_config
from benchlib.inputs import jpegs

CANDIDATES, COMPLETIONS = 4, 8  # images A to D of a sample; completions of a visit
PHOTOS = 50  # different JPEGs; samples take them in turn
ROUND_STEPS = 100


def resident_mb() -> float:
    """Memory of this process in 10^6 bytes."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def make_records(folder: pathlib.Path, count: int, side: int) -> Records:
    """A data set of `count` samples of JPEGs of `side` px, as the command `build` makes it."""
    for number, photo in enumerate(jpegs(PHOTOS, side)):
        (folder / f"{number}.jpg").write_bytes(photo)
    samples = [
        Sample(
            id=f"{i:06d}",
            split="train",
            dimension=DIMENSIONS[i % len(DIMENSIONS)],
            original=f"{i % PHOTOS}.jpg",
            candidates=tuple(f"{(i + k) % PHOTOS}.jpg" for k in range(1, CANDIDATES + 1)),
            answer=("A",),
            reasoning=None,
            question=None,
        )
        for i in range(count)
    ]
    shards = dataset.plan_shards(str(folder), samples)
    unfinished = folder / "screening" / "unfinished"
    unfinished.mkdir(parents=True)
    for shard in shards:
        dataset.write_shard(str(folder), str(unfinished), shard)
    dataset.finish(str(unfinished), shards, str(unfinished.with_name(dataset.VERSION)))
    return open_records(data_dir=str(folder))


def make_preprocessor(tile_size: int, tokens_per_tile: int) -> Preprocessor:
    """A preprocessor for samples of `make_records`, with a small tokenizer."""
    tokenizer = train_tokenizer((question_text(name, CANDIDATES) for name in DIMENSIONS), 400)
    images = CANDIDATES + 1
    length = images * tokens_per_tile + 500
    return Preprocessor(tokenizer, tile_size, tokens_per_tile, images, 1, (length,), (1,))


def _batches(
    records: Records, plan: np.ndarray, preprocessor: Preprocessor, batch_size: int, threads: int
) -> Iterator[Batch]:
    """Batches of a plan, as GRPO reads them."""
    return planned_batches(
        records, plan, preprocessor, batch_size, with_completion=False, threads=threads
    )


def loading(
    folder: pathlib.Path, samples: int, epochs: int, batch_size: int, threads: int
) -> dict[str, Any]:
    """Epochs from ArrayRecord to batches; one figure an epoch.

    Args:
        folder: an empty folder for the data set.
        samples: number of samples in the data set.
        epochs: number of passes over all samples.
        batch_size: samples per batch.
        threads: number of threads that read and decode ahead.
    """
    records = make_records(folder, samples, 512)
    preprocessor = make_preprocessor(448, 256)
    memory, rates, rates_per_core = [], [], []
    for number in range(epochs):
        wall, cpu, images = time.perf_counter(), time.process_time(), 0
        plan = epoch_plan(0, number, np.arange(len(records)), len(records))
        for batch in _batches(records, plan, preprocessor, batch_size, threads):
            images += len(batch.index) * (CANDIDATES + 1)
        rates.append(round(images / (time.perf_counter() - wall), 1))
        rates_per_core.append(round(images / (time.process_time() - cpu), 1))
        memory.append(resident_mb())
    return {"images_per_s": rates, "images_per_s_core": rates_per_core, "resident_mb": memory}


def epoch(
    folder: pathlib.Path, samples: int, epochs: int, batch_size: int, threads: int
) -> dict[str, Any]:
    """Online mining without the model: plans, batches, difficulty table, checkpoints.

    A fixed probability for each sample stands in for the model's answers, and images of 28 px for
    photos, so that decoding takes little of the time. Arguments as in `loading`.
    """
    records = make_records(folder, samples, 28)
    preprocessor = make_preprocessor(28, 1)
    config = grpo_config().hard_cases
    config.round_steps = ROUND_STEPS
    config.plan_length = batch_size * ROUND_STEPS
    pass_rate = np.random.default_rng(0).random(samples)
    table, memory, plan_seconds, step = hard_cases.init_table(samples), [], [], 0
    rounds = epochs * samples // config.plan_length
    no_parameters = {"none": np.zeros(())}
    start = time.perf_counter()
    with runs.open_manager(str(folder / "run"), keep=2) as manager:
        for number in range(rounds):
            plan_start = time.perf_counter()
            plan = hard_cases.make_plan(0, number, table, config)
            plan_seconds.append(time.perf_counter() - plan_start)
            for batch in _batches(records, plan, preprocessor, batch_size, threads):
                step += 1
                right = np.random.default_rng(step).binomial(COMPLETIONS, pass_rate[batch.index])
                exact = right / COMPLETIONS
                table = hard_cases.update_table(
                    table, batch.index, exact, step, config, COMPLETIONS
                )
            runs.save(manager, step, no_parameters, no_parameters, (table, plan))
            if number % max(1, rounds // 10) == 0:
                memory.append(resident_mb())
    checkpoint = folder / "run" / "checkpoints" / str(step)
    return {
        "steps": step,
        "seconds": round(time.perf_counter() - start, 1),
        "plan_s": round(max(plan_seconds), 4),
        "plan_bytes": plan.nbytes,
        "table_bytes": sum(x.nbytes for x in table),
        "checkpoint_bytes": sum(x.stat().st_size for x in checkpoint.rglob("*") if x.is_file()),
        "seen": int((table.count > 0).sum()),
        "resident_mb": memory,
    }
