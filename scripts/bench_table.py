"""Prints a Markdown table of our benchmarks beside TRL's and transformers'.

    python scripts/bench_table.py --size=bench --rounds=3

Each round runs scripts/bench_peer.py and then scripts/bench.py, each in its own process. A row's
ratio is the median over the rounds' ratios, so other load on the machine mostly cancels out. Needs
the parity extra.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from absl import flags
from command_line import parse_flags

# benchmark: its rows, each with the work, the peer and the field that both scripts print
ROWS = {
    "grpo_update": [("GRPO update, beta 0.04", "TRL", "update_s")],
    "rollout": [("rollout, sampling", "transformers generate", "rollout_s")],
    "sft_step": [
        ("SFT step, 16 samples of mixed lengths, 5 images each", "TRL SFTTrainer", "step_s")
    ],
    "input": [
        ("5 JPEGs of 1024 px to tiles, one core", "transformers image processor", "sample_s"),
        ("the same without decoding them", "transformers image processor", "tiling_s"),
    ],
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("size", "bench", ["bench", "2b"], "size of the model", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "rounds", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_multi_enum(
    "only", None, list(ROWS), "benchmark to run, may be repeated; default: all", flag_values=FLAGS
)


def run_script(script: str, benchmark: str, size: str) -> dict:
    """The JSON line that a script prints."""
    command = [
        sys.executable,
        str(Path(__file__).with_name(script)),
        f"--benchmark={benchmark}",
        f"--size={size}",
    ]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Prints the table, a row as soon as its benchmark is done."""
    parse_flags(FLAGS, argv, __doc__)
    print("| work | peer | peer, s | ours, s | ratio |\n|---|---|---|---|---|")
    for benchmark in FLAGS.only or ROWS:
        rounds = [
            [run_script(script, benchmark, FLAGS.size) for script in ("bench_peer.py", "bench.py")]
            for _ in range(FLAGS.rounds)
        ]
        for work, peer, field in ROWS[benchmark]:
            peer_s, our_s = (
                statistics.median(line[field] for line in lines)
                for lines in zip(*rounds, strict=True)
            )
            ratio = statistics.median(theirs[field] / ours[field] for theirs, ours in rounds)
            print(f"| {work} | {peer} | {peer_s:.3g} | {our_s:.3g} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv)
