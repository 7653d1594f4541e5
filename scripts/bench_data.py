"""Measures the data path, without a model; prints one JSON line.

    python scripts/bench_data.py --benchmark=loading [--samples=400] [--epochs=3]
    python scripts/bench_data.py --benchmark=epoch [--samples=128000] [--epochs=1]

Benchmarks:
  loading   epochs over samples of five JPEGs of 512 px, from ArrayRecord to batches: read, decode, tile to 448 px, tokenise
  epoch     what a run of online mining does beside the model's arithmetic, in as many steps as an epoch has: plans, batches (of
            images of 28 px, so that it is soon over), the difficulty table, checkpoints

images_per_s_core counts seconds of the processor, all threads together. resident_mb is the process's memory after each epoch of
loading, or each tenth of the run.
"""

import json
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator

import bench
import numpy as np
from absl import flags

from aesthetic_jax.checkpoints import training as checkpoints
from aesthetic_jax.data import dataset, hard_cases
from aesthetic_jax.data.manifest import DIMENSIONS, Sample
from aesthetic_jax.data.pipeline import Batch, Encoder, epoch_plan, planned_batches
from aesthetic_jax.data.prompts import question_text
from aesthetic_jax.data.records import Records, open_records
from aesthetic_jax.data.tokenizer import train_tokenizer
from aesthetic_jax.training.config import grpo_config

FLAGS = flags.FlagValues()
flags.DEFINE_enum("benchmark", "loading", ["loading", "epoch"], "what to measure", flag_values=FLAGS)
flags.DEFINE_integer("samples", 0, "of the data set; 0: 400 for loading, 128,000 for epoch", flag_values=FLAGS)
flags.DEFINE_integer("epochs", 0, "over the samples; 0: 3 for loading, 1 for epoch", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 64, "samples of a batch", flag_values=FLAGS)
flags.DEFINE_integer("threads", 2, "that read and decode ahead", flag_values=FLAGS)

OPTIONS = 4


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def make_records(folder: pathlib.Path, count: int, side: int) -> Records:
    """A data set of `count` samples, as `build` makes it, of 50 photo-like JPEGs in turn."""
    for number, photo in enumerate(bench.jpegs(50, side)):
        (folder / f"{number}.jpg").write_bytes(photo)
    samples = [
        Sample(
            id=f"{i:06d}",
            split="train",
            dimension=DIMENSIONS[i % len(DIMENSIONS)],
            original=f"{i % 50}.jpg",
            candidates=tuple(f"{(i + k) % 50}.jpg" for k in range(1, OPTIONS + 1)),
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


def make_encoder(tile_size: int, tokens_per_tile: int) -> Encoder:
    """One for samples of `make_records`."""
    tokenizer = train_tokenizer((question_text(name, OPTIONS) for name in DIMENSIONS), 400)
    length = (OPTIONS + 1) * tokens_per_tile + 500
    return Encoder(tokenizer, tile_size, tokens_per_tile, OPTIONS + 1, 1, (length,), (1,))


def batches(records: Records, plan: np.ndarray, encoder: Encoder) -> Iterator[Batch]:
    """Batches of a plan, as GRPO reads them."""
    return planned_batches(records, plan, encoder, FLAGS.batch_size, with_completion=False, threads=FLAGS.threads)


def loading(folder: pathlib.Path) -> dict:
    """Epochs over the data set."""
    records = make_records(folder, FLAGS.samples or 400, 512)
    encoder, memory, rates, per_core = make_encoder(448, 256), [], [], []
    for number in range(FLAGS.epochs or 3):
        wall, cpu, images = time.perf_counter(), time.process_time(), 0
        for batch in batches(records, epoch_plan(0, number, np.arange(len(records)), len(records)), encoder):
            images += batch.tiles.shape[0] * batch.tiles.shape[1]
        rates.append(round(images / (time.perf_counter() - wall), 1))
        per_core.append(round(images / (time.process_time() - cpu), 1))
        memory.append(resident_mb())
    return {"images_per_s": rates, "images_per_s_core": per_core, "resident_mb": memory}


def epoch(folder: pathlib.Path) -> dict:
    """One epoch of online mining."""
    records, encoder = make_records(folder, FLAGS.samples or 128_000, 28), make_encoder(28, 1)
    config, count = grpo_config().hard_cases, len(records)
    config.plan_length = round_length = FLAGS.batch_size * 100
    difficulty = np.random.default_rng(0).random(count)  # stands for the model: how often it answers a sample right
    table, memory, plans, done = hard_cases.init_table(count), [], [], 0
    rounds = (FLAGS.epochs or 1) * count // round_length
    began = time.perf_counter()
    with checkpoints.open_manager(str(folder / "run"), keep=2) as manager:
        for number in range(rounds):
            planned = time.perf_counter()
            plan = hard_cases.make_plan(0, number, table, config)
            plans.append(time.perf_counter() - planned)
            for batch in batches(records, plan, encoder):
                done += 1
                exact = np.random.default_rng(done).binomial(8, difficulty[batch.index]) / 8
                table = hard_cases.update_table(table, batch.index, exact, done, config)
            nothing = {"none": np.zeros(())}
            checkpoints.save(manager, done, nothing, nothing, (table, plan))
            if number % max(1, rounds // 10) == 0:
                memory.append(resident_mb())
    written = sum(x.stat().st_size for x in (folder / "run" / "checkpoints" / str(done)).rglob("*") if x.is_file())
    return {
        "steps": done,
        "seconds": round(time.perf_counter() - began, 1),
        "plan_s": round(max(plans), 4),
        "plan_bytes": plan.nbytes,
        "table_bytes": sum(x.nbytes for x in table),
        "checkpoint_bytes": written,
        "seen": int((table.count > 0).sum()),
        "resident_mb": memory,
    }


def main(words: list[str]) -> None:
    """Runs one benchmark."""
    FLAGS(words)
    run = {"loading": loading, "epoch": epoch}[FLAGS.benchmark]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"benchmark": FLAGS.benchmark} | run(pathlib.Path(folder))))


if __name__ == "__main__":
    main(sys.argv)
