"""Prints the peak GiB per TPU chip of each step, by the TPU compiler, as a Markdown table.

    pip install -e '.[tpu]' && python scripts/compile_table.py [--only=2b@v5e:4x4] [--largest_batch]

A microbatch has one row per chip; everything else is as in configs/sft_internvl3_2b.py and
configs/hcm_grpo_internvl3_2b.py. Needs no TPU.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from absl import flags
from command_line import parse_flags

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "only", [], "rows to print, as MODEL@TOPOLOGY[*SLICES]; empty: all", flag_values=FLAGS
)
flags.DEFINE_bool(
    "largest_batch",
    False,
    "also find the most rows of a microbatch per chip that fit; compiles several times",
    flag_values=FLAGS,
)

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = {  # MODEL@TOPOLOGY[*SLICES]: further flags
    "2b@v5e:4x4": [],
    "2b@v5e:16x16": [],
    "2b@v5e:4x4*2": [],
    "2b@v6e:4x4": [],
    "2b@v5p:2x2x4": [],
    "8b@v6e:8x8": [],
    "8b@v5p:4x4x4": [],
    # fsdp splits the vision tower's width, 3200: of powers of two, 128 is the largest divisor.
    "38b@v5p:8x8x8": ["--config.mesh.fsdp=64", "--config.mesh.data=8"],
}


def compile_report(row: str, more: list[str], method: str, batch_size: int) -> dict:
    """The JSON that `aesthetic-jax compile` prints for one row and one config.

    Args:
        row: a key of ROWS.
        more: further flags.
        method: sft or hcm_grpo.
        batch_size: rows of a batch; at least one per chip are used.
    """
    model, _, hardware = row.partition("@")
    topology, _, slices = hardware.partition("*")
    chips = math.prod(map(int, topology.partition(":")[2].split("x"))) * int(slices or 1)
    batch_size = max(batch_size, chips)
    arguments = [
        "compile",
        f"--config={CONFIGS}/{method}_internvl3_2b.py",
        f"--topology={topology}",
        f"--slices={slices or 1}",
        f"--config.model.preset=internvl3_{model}",
        f"--config.batch_size={batch_size}",
        f"--config.micro_batches={batch_size // chips}",
        f"--largest_batch={FLAGS.largest_batch}",
        *more,
    ]
    result = subprocess.run(
        [sys.executable, "-m", "aesthetic_jax", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def step_cell(step: dict) -> str:
    """Peak GiB per chip, and the most rows of a microbatch that fit where they were searched."""
    parts = []
    if "peak_bytes_per_chip" in step:
        parts.append(f"{step['peak_bytes_per_chip'] / 2**30:.1f}")
    if not step["fits"]:
        parts.append("does not fit")
    if "largest_rows_per_chip" in step:
        parts.append(f"{step['largest_rows_per_chip']} rows")
    return ", ".join(parts)


def main(arguments: list[str]) -> None:
    """Compiles row by row and prints the table."""
    parse_flags(FLAGS, arguments, __doc__)
    print("| model | topology | chips | GiB per chip | SFT | rollout | update |")
    print("|---|---|---|---|---|---|---|")
    for row in FLAGS.only or ROWS:
        model, _, hardware = row.partition("@")
        sft = compile_report(row, ROWS[row], "sft", 128)
        steps = sft["steps"] | compile_report(row, ROWS[row], "hcm_grpo", 64)["steps"]
        cells = [
            model.upper(),
            hardware,
            str(sft["chips"]),
            f"{sft['memory_bytes_per_chip'] / 2**30:.0f}",
            *(step_cell(steps[name]) for name in ("sft", "rollout", "update")),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv)
