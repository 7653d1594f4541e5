"""Benchmarks the data path, without a model; prints one JSON line.

    python scripts/bench_data.py --benchmark=loading [--samples=400] [--epochs=3]
    python scripts/bench_data.py --benchmark=epoch [--samples=128000] [--epochs=1]

Benchmarks:
  loading   epochs over samples of five JPEGs of 512 px, from ArrayRecord to batches:
            read, decode, tile to 448 px, tokenise
  epoch     what a run with online mining does besides the model's arithmetic, for as many
            steps as an epoch has: plans, batches (images of 28 px), difficulty table, checkpoints

Fields:
  images_per_s       of each epoch
  images_per_s_core  the same per second of CPU time, all threads together
  resident_mb        memory of the process after each epoch of loading, or each tenth of the run
  plan_s             the slowest plan
  seen               samples that came up at least once
"""

import json
import pathlib
import sys
import tempfile

from absl import flags
from benchlib.data_path import epoch, loading
from command_line import parse_flags

BENCHMARKS = {"loading": loading, "epoch": epoch}
DEFAULTS = {"loading": (400, 3), "epoch": (128_000, 1)}  # samples and epochs

FLAGS = flags.FlagValues()
flags.DEFINE_enum("benchmark", "loading", list(BENCHMARKS), "what to measure", flag_values=FLAGS)
flags.DEFINE_integer(
    "samples", 0, "samples of the data set; 0: 400 for loading, 128,000 for epoch",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "epochs", 0, "epochs; 0: 3 for loading, 1 for epoch", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer("batch_size", 64, "samples of a batch", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "threads", 2, "threads that read and decode ahead", lower_bound=1, flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Prints the JSON line of the benchmark that the flags choose."""
    parse_flags(FLAGS, argv, __doc__)
    samples, epochs = DEFAULTS[FLAGS.benchmark]
    samples, epochs = FLAGS.samples or samples, FLAGS.epochs or epochs
    with tempfile.TemporaryDirectory() as folder:
        result = BENCHMARKS[FLAGS.benchmark](
            pathlib.Path(folder), samples, epochs, FLAGS.batch_size, FLAGS.threads
        )
    print(json.dumps({"benchmark": FLAGS.benchmark} | result))


if __name__ == "__main__":
    main(sys.argv)
