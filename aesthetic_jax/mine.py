"""Finds a split's hard cases: samples completions of every sample and writes them with the difficulty table.

aesthetic-jax mine --config=configs/X.py --checkpoint=DIR --out=DIR

Cut off and started again, it goes on where it was. A run begins with the table where --config.hard_cases.table=DIR.
"""

import dataclasses

from absl import flags

from aesthetic_jax.command_line import define_config, require

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "train, validation or test", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for completions.jsonl, table.npz and mining.json", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config, checkpoint, out = (require(arguments, name) for name in ("config", "checkpoint", "out"))

    from aesthetic_jax.checkpoints.training import abstract_model, load_model, locate
    from aesthetic_jax.data.records import open_records
    from aesthetic_jax.data.tokenizer import load_tokenizer
    from aesthetic_jax.errors import UserError
    from aesthetic_jax.training.config import check_config
    from aesthetic_jax.training.mesh import check_rows, make_mesh
    from aesthetic_jax.training.mining import mine, summarize_table
    from aesthetic_jax.training.model import make_encoder

    check_config(config)
    if config.method != "grpo":
        raise UserError(
            f"config.method: is '{config.method}'; mining samples as GRPO does, give a config of method grpo"
        )
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size)
    records = open_records(config.data.manifest, config.data.data_dir, arguments.split)
    dimensions = records.dimensions()
    run, step = locate(checkpoint)
    architecture, parameters, tokenizer = load_model(str(run / "checkpoints" / str(step)), mesh)
    architecture = dataclasses.replace(architecture, attention=config.model.attention)  # of this machine, not the run's
    encoder = make_encoder(config, architecture, load_tokenizer(tokenizer))
    graph, _ = abstract_model(architecture)
    table = mine(config, parameters, graph, records, encoder, out, f"{run}/checkpoints/{step}", mesh)
    print(summarize_table(table, dimensions))
    print(out)
