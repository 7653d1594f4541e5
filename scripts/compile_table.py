"""What training needs of TPUs, by the TPU compiler, as a Markdown table: models, topologies, steps.

    pip install -e '.[tpu]' && python scripts/compile_table.py [--only=2b@v5e:4x4] [--largest_batch]

A part of a batch has one row on every chip; all else is as in configs/sft_internvl3_2b.py and configs/hcm_grpo_internvl3_2b.py.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string("only", [], "rows to make, as MODEL@TOPOLOGY[*SLICES]; empty: all", flag_values=FLAGS)
flags.DEFINE_bool("largest_batch", False, "search the most rows a chip that fit; compiles again", flag_values=FLAGS)

CONFIGS = Path(__file__).parents[1] / "configs"
ROWS = {  # MODEL@TOPOLOGY[*SLICES]: flags of its own
    "2b@v5e:4x4": [],
    "2b@v5e:16x16": [],
    "2b@v6e:4x4": [],
    "2b@v5p:2x2x4": [],
    "2b@v5e:4x4*2": [],
    "8b@v5p:4x4x4": [],
    "8b@v6e:8x8": [],
    # Its vision tower's width, 3200, is divided by 128 at most.
    "38b@v5p:8x8x8": ["--config.mesh.fsdp=64", "--config.mesh.data=8"],
}


def report(row: str, more: list[str], method: str, batch_size: int) -> dict:
    """What `aesthetic-jax compile` says of one method."""
    model, _, place = row.partition("@")
    topology, _, slices = place.partition("*")
    chips = math.prod(map(int, topology.partition(":")[2].split("x"))) * int(slices or 1)
    batch_size = max(batch_size, chips)
    words = [
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
        [sys.executable, "-m", "aesthetic_jax", *words], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{' '.join(words)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def main(words: list[str]) -> None:
    """Prints the table."""
    FLAGS(words)
    print("| model | topology | chips | step | GiB a chip | of | most rows a chip | least time, s | compiled in, s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in FLAGS.only or ROWS:
        model, _, topology = row.partition("@")
        for method, batch_size in (("sft", 128), ("hcm_grpo", 64)):
            told = report(row, ROWS[row], method, batch_size)
            for name, step in told["steps"].items():
                used = step.get("peak_bytes_per_chip", math.nan) / 2**30
                fits = "" if step["fits"] else ", does not fit"
                cells = [
                    model.upper(),
                    topology,
                    told["chips"],
                    name,
                    f"{used:.1f}{fits}",
                    f"{told['memory_bytes_per_chip'] / 2**30:.0f}",
                    step.get("largest_rows_per_chip", ""),
                    f"{step['roofline_s']:.2g}" if "roofline_s" in step else "",
                    f"{step['compile_s']:.0f}",
                ]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main(sys.argv)
