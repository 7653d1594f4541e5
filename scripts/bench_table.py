"""Our benchmarks beside TRL's and transformers', in turn on the same machine, as a Markdown table.

    python scripts/bench_table.py --size=bench --rounds=3

Each round runs scripts/bench_peer.py and then scripts/bench.py, each in a process of its own; a row's ratio is the median of
the rounds' ratios, so that a busy neighbour, who slows both, cancels out. Needs the parity extra.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_enum("size", "bench", ["bench", "2b"], "how large a model", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "how often each is run", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_multi_string("only", [], "benchmarks to run; empty: all", flag_values=FLAGS)

ROWS = {  # benchmark: rows of what it is, its peer, and the field that both print
    "grpo_update": [("GRPO update, beta 0.04", "TRL", "update_s")],
    "rollout": [("rollout, sampling", "transformers generate", "rollout_s")],
    "sft_step": [("SFT step, 16 samples of mixed lengths, 5 images each", "TRL SFTTrainer", "step_s")],
    "input": [
        ("5 JPEGs of 1024 px to what goes to the device, one core", "transformers image processor", "sample_s"),
        ("the same without decoding them", "transformers image processor", "tiling_s"),
    ],
}


def measure(script: str, benchmark: str, size: str) -> dict:
    """The JSON line of one run."""
    words = [sys.executable, str(Path(__file__).with_name(script)), f"--benchmark={benchmark}", f"--size={size}"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main(words: list[str]) -> None:
    """Prints the table."""
    FLAGS(words)
    print("| work | peer | peer, s | ours, s | ratio |\n|---|---|---|---|---|")
    for benchmark in FLAGS.only or ROWS:
        scripts = ("bench_peer.py", "bench.py")
        rounds = [[measure(script, benchmark, FLAGS.size) for script in scripts] for _ in range(FLAGS.rounds)]
        for title, peer, field in ROWS[benchmark]:
            theirs, ours = (statistics.median(each[side][field] for each in rounds) for side in (0, 1))
            ratio = statistics.median(theirs[field] / ours[field] for theirs, ours in rounds)
            print(f"| {title} | {peer} | {theirs:.3g} | {ours:.3g} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv)
