"""Finds a split's hard cases: samples completions of every sample and writes them with the difficulty table.

aesthetic-jax mine --config=configs/X.py --checkpoint=DIR --out=DIR

Cut off (by SIGTERM, with exit code 75) and started again, it goes on where it was. A run begins with the table where
--config.hard_cases.table=DIR.
"""

from absl import flags
from ml_collections import ConfigDict

from aesthetic_jax.command_line import define_config, define_hosts, exit_stopped, joined_hosts, require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "train, validation or test", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for completions.jsonl, table.npz and mining.json", flag_values=FLAGS)
define_hosts(FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config, checkpoint, out = (require(arguments, name) for name in ("config", "checkpoint", "out"))
    if config.method != "grpo":
        raise UserError(
            f"config.method: is '{config.method}'; mining samples as GRPO does, give a config of method grpo"
        )
    with joined_hosts(arguments):
        done = _mine(config, checkpoint, arguments.split, out)
    if not done:
        exit_stopped(out)


def _mine(config: ConfigDict, checkpoint: str, split: str, out: str) -> bool:
    import jax

    from aesthetic_jax.data.records import open_records
    from aesthetic_jax.training.config import check_config
    from aesthetic_jax.training.mesh import check_rows, make_mesh
    from aesthetic_jax.training.mining import mine, summarize_table
    from aesthetic_jax.training.model import trained_model
    from aesthetic_jax.training.preemption import notices

    check_config(config)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size)
    records = open_records(config.data.manifest, config.data.data_dir, split)
    graph, parameters, encoder, model = trained_model(config, checkpoint, mesh)
    with jax.set_mesh(mesh), notices() as is_to_stop:
        table = mine(config, parameters, graph, records, encoder, out, model, mesh, is_to_stop)
    if table is not None and jax.process_index() == 0:
        print(summarize_table(table, records.dimensions()))
        print(out)
    return table is not None
