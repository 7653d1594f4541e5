"""Benchmarks one piece of training; prints one JSON line.

    python scripts/bench.py --benchmark=grpo_update --size=bench

Benchmarks:
  grpo_update   one optimiser update on a rollout, the reference's log-probabilities
                (beta 0.04) included
  rollout       prefill and sampling, each completion to its full length
  sft_step      one optimiser step on 16 samples of 5 images and mixed lengths
  input         JPEG bytes to image tiles, on one core
  import        load_pretrained of a checkpoint of this size, which the benchmark writes first
  compile_time  compiling sft, update and rollout; nothing is run

Sizes:
  bench         38.3 million parameters, float32, 5 images of 224 px, 80 text tokens,
                8 completions of 96 tokens: for two CPU cores. scripts/bench_peer.py does the same
                work with TRL and transformers.
  2b            InternVL3-2B in bfloat16, random weights, the paper's shapes (5 images of 448 px,
                8 completions of 256 tokens): for one GPU or TPU chip.

Fields:
  *_s                     median of --reps runs after one that compiles, in seconds
  tokens_per_s            counts a prompt once for its group; for a rollout, only sampled tokens
  model_flops             as aesthetic_jax/training/flops.py counts
  mfu                     model_flops per second over the peak: a measured matrix product on CPUs
                          and GPUs, the data sheet on TPUs
  bandwidth_share         of a rollout: time to read the bytes that decoding needs, at the measured
                          bandwidth, over rollout_s; see scripts/benchlib/bandwidth.py
  bandwidth_bytes_per_s   measured: a reduction over an array larger than the caches
  peak_memory_bytes       arguments, outputs and temporaries of the compiled program
"""

import json
import sys

import jax
from absl import flags
from benchlib.compiling import compile_time
from benchlib.files import import_checkpoint, jpeg_tiles
from benchlib.sizes import SIZES, Options, choose_size
from benchlib.steps import grpo_update, rollout, sft_step
from command_line import parse_flags

from aesthetic_jax.models.internvl import abstract_model

BENCHMARKS = {
    "grpo_update": grpo_update,
    "rollout": rollout,
    "sft_step": sft_step,
    "input": jpeg_tiles,
    "import": import_checkpoint,
    "compile_time": compile_time,
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("benchmark", None, list(BENCHMARKS), "what to measure", flag_values=FLAGS)
flags.DEFINE_enum("size", "bench", list(SIZES), "size of the model", flag_values=FLAGS)
flags.DEFINE_integer("reps", 5, "timed runs", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string(
    "profile", None, "folder for a trace of one run, for XProf or Perfetto", flag_values=FLAGS
)
flags.DEFINE_enum(
    "remat", None, ["none", "dots", "full"], "rematerialisation; default: the size's",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "microbatches", 4, "microbatches of sft_step's 16 samples", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "vocabulary", None, "rows of embedding and head; default: the size's", flag_values=FLAGS
)
flags.DEFINE_integer("group", 8, "completions per prompt", lower_bound=2, flag_values=FLAGS)
flags.mark_flag_as_required("benchmark", FLAGS)


def main(argv: list[str]) -> None:
    """Prints the JSON line of the benchmark that the flags choose."""
    parse_flags(FLAGS, argv, __doc__)
    size = choose_size(FLAGS.size, FLAGS.remat, FLAGS.vocabulary)
    options = Options(FLAGS.group, FLAGS.microbatches, FLAGS.reps, FLAGS.profile)
    result = BENCHMARKS[FLAGS.benchmark](size, options)
    _, shapes = abstract_model(size.config)
    setting = dict(
        benchmark=FLAGS.benchmark,
        size=FLAGS.size,
        device=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        parameters=sum(x.size for x in jax.tree.leaves(shapes)),
        dtype=size.config.dtype,
        remat=size.config.remat,
    )
    print(json.dumps(setting | result))


if __name__ == "__main__":
    main(sys.argv)
