r"""Finds a split's hard cases: samples completions of every sample and writes a difficulty table.

Example:
  aesthetic-jax mine --config=configs/hcm_grpo_internvl3_2b.py --config.data.data_dir=photos/data \
    --checkpoint=runs/sft --out=mined

OUT/completions.jsonl holds each sample's completions and the share that is right. Read it to see
what is hard and to correct labels. --config.hard_cases.table=OUT starts a run with the table.
SIGTERM stops mining after a batch, with exit code 75; the same command resumes it.
"""

from absl import flags
from ml_collections import ConfigDict

from aesthetic_jax.command_line import (
    define_config,
    define_hosts,
    exit_stopped,
    joined_hosts,
    require,
)
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string(
    "checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS
)
flags.DEFINE_string("split", "train", "train, validation or test", flag_values=FLAGS)
flags.DEFINE_string(
    "out", None, "folder for completions.jsonl, table.npz and mining.json", flag_values=FLAGS
)
define_hosts(FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Mines --split with the model of --checkpoint into --out."""
    config, checkpoint, out = (require(arguments, x) for x in ("config", "checkpoint", "out"))
    if config.method != "grpo":
        raise UserError(
            f"config.method: is '{config.method}'; mining samples as GRPO does, give a config of "
            "method grpo"
        )
    with joined_hosts(arguments):
        finished = _mine(config, checkpoint, arguments.split, out)
    if not finished:
        exit_stopped(out)


def _mine(config: ConfigDict, checkpoint: str, split: str, out: str) -> bool:
    import jax
    from etils import epath

    from aesthetic_jax.training.answering import Answering
    from aesthetic_jax.training.judge import open_judge
    from aesthetic_jax.training.mining import make_mining_sampler, mine, summarize_table
    from aesthetic_jax.training.preemption import preemption_guard

    judge = open_judge(config, checkpoint, split, "batch_size")
    sampler = make_mining_sampler(config, judge.graph, judge.preprocessor, judge.mesh)
    work = Answering(sampler, judge.records, judge.records.ids(), epath.Path(out), "mining")
    with jax.set_mesh(judge.mesh), preemption_guard() as should_stop:
        table = mine(config, work, judge.parameters, judge.path, should_stop)
    if table is not None and jax.process_index() == 0:
        print(summarize_table(table, judge.records.dimensions()))
        print(out)
    return table is not None
