"""Answers the questions of a split greedily and scores the answers: writes metrics.json and predictions.jsonl.

aesthetic-jax evaluate --config=configs/X.py --checkpoint=DIR --split=test --out=DIR
"""

import json

from absl import flags
from ml_collections import ConfigDict

from aesthetic_jax.command_line import define_config, define_hosts, joined_hosts, require

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS)
flags.DEFINE_string("split", "test", "split of the config's data set", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for metrics.json and predictions.jsonl", flag_values=FLAGS)
define_hosts(FLAGS)
flags.DEFINE_integer("limit", 0, "answer the first so many questions only; 0: all", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config, checkpoint, out = (require(arguments, name) for name in ("config", "checkpoint", "out"))
    with joined_hosts(arguments):
        _evaluate(config, checkpoint, out, arguments.split, arguments.limit)


def _evaluate(config: ConfigDict, checkpoint: str, out: str, split: str, limit: int) -> None:
    import jax
    from etils import epath

    from aesthetic_jax.data.records import open_records
    from aesthetic_jax.rl.scores import format_table
    from aesthetic_jax.training.config import check_config
    from aesthetic_jax.training.evaluation import make_sampler, predict, summarize_predictions
    from aesthetic_jax.training.mesh import check_rows, make_mesh
    from aesthetic_jax.training.model import trained_model

    check_config(config)
    records = open_records(config.data.manifest, config.data.data_dir, split)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "eval_batch_size", config.eval_batch_size)
    graph, parameters, encoder, _ = trained_model(config, checkpoint, mesh)
    greedy = make_sampler(graph, encoder, config.max_completion_length, mesh, hold_layers=config.mesh.hold_layers)
    predictions = predict(greedy, parameters, records, encoder, config.eval_batch_size, mesh, limit)

    metrics = summarize_predictions(predictions)
    if jax.process_index():
        return
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("id", "dimension", "completion", "predicted", "answer")
    rows = "".join(json.dumps({name: row[name] for name in fields}) + "\n" for row in predictions)
    (folder / "predictions.jsonl").write_text(rows)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(format_table({epath.Path(checkpoint).name: metrics}))
    print(folder)
