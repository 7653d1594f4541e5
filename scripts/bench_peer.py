"""Does the work of scripts/bench.py with TRL and transformers; prints one JSON line.

    python scripts/bench_peer.py --benchmark=grpo_update --size=bench

Benchmarks:
  grpo_update   GRPOTrainer._compute_loss, its reference model, backward, AdamW
  rollout       transformers' generate, sampling
  sft_step      SFTTrainer.compute_loss on its own collated batch, backward, AdamW
  input         transformers' InternVL image processor (PIL version), on one core

Needs the parity extra. At size 2b on a GPU everything is bfloat16, with sdpa attention and gradient
checkpointing.
"""

import json
import sys

import torch
from absl import flags
from benchlib.peer import grpo_update, images, rollout, sft_step
from benchlib.peer_model import DEVICE
from benchlib.sizes import SIZES
from command_line import parse_flags

BENCHMARKS = {
    "grpo_update": grpo_update,
    "rollout": rollout,
    "sft_step": sft_step,
    "input": images,
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("benchmark", None, list(BENCHMARKS), "what to measure", flag_values=FLAGS)
flags.DEFINE_enum("size", "bench", list(SIZES), "size of the model", flag_values=FLAGS)
flags.DEFINE_integer("reps", 3, "timed runs", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("group", 8, "completions per prompt", lower_bound=2, flag_values=FLAGS)
flags.mark_flag_as_required("benchmark", FLAGS)


def main(argv: list[str]) -> None:
    """Prints the JSON line of the benchmark that the flags choose."""
    parse_flags(FLAGS, argv, __doc__)
    result = BENCHMARKS[FLAGS.benchmark](SIZES[FLAGS.size], FLAGS.group, FLAGS.reps)
    setting = dict(
        benchmark=FLAGS.benchmark, size=FLAGS.size, device=DEVICE, threads=torch.get_num_threads()
    )
    print(json.dumps(setting | result))


if __name__ == "__main__":
    main(sys.argv)
