r"""Answers the questions of a split greedily and scores the answers.

Example:
  aesthetic-jax evaluate --config=configs/quickstart.py:sft --config.data.data_dir=photos/data \
    --checkpoint=runs/sft --split=test --out=results/sft

Writes OUT/predictions.jsonl and OUT/metrics.json. If scenes.jsonl stands beside the data, the
metrics also say how often the chains of thought state the images' facts rightly and wrongly. Prompt
settings are those of the checkpoint's training. SIGTERM stops it after a batch, with exit code 75;
the same command resumes.
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

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string(
    "checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS
)
flags.DEFINE_string("split", "test", "split of the config's data set", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for metrics.json and predictions.jsonl", flag_values=FLAGS)
define_hosts(FLAGS)
flags.DEFINE_integer(
    "limit", 0, "answer only the first so many questions; 0: all", lower_bound=0, flag_values=FLAGS
)


def main(arguments: flags.FlagValues) -> None:
    """Evaluates --checkpoint on --split into --out."""
    config, checkpoint, out = (require(arguments, x) for x in ("config", "checkpoint", "out"))
    with joined_hosts(arguments):
        finished = _evaluate(config, checkpoint, out, arguments.split, arguments.limit)
    if not finished:
        exit_stopped(out)


def _evaluate(config: ConfigDict, checkpoint: str, out: str, split: str, limit: int) -> bool:
    import jax
    from etils import epath

    from aesthetic_jax.data.records import data_folder
    from aesthetic_jax.data.scenes.facts_file import find_scenes
    from aesthetic_jax.rl.fidelity import format_facts
    from aesthetic_jax.rl.metrics import format_table
    from aesthetic_jax.training.answering import Answering
    from aesthetic_jax.training.evaluation import evaluate_split
    from aesthetic_jax.training.judge import open_judge
    from aesthetic_jax.training.model import PROMPT_SETTINGS
    from aesthetic_jax.training.preemption import preemption_guard
    from aesthetic_jax.training.sampling import make_sampler

    judge = open_judge(config, checkpoint, split, "eval_batch_size")
    batch_size = config.eval_batch_size
    sampler = make_sampler(
        config, judge.graph, judge.preprocessor, judge.mesh, batch_size=batch_size
    )
    ids = judge.records.ids()
    ids = ids[: limit or len(ids)]
    scenes = find_scenes(data_folder(config.data.manifest, config.data.data_dir), ids)
    work = Answering(sampler, judge.records, ids, epath.Path(out), "answering")
    settings = {
        "model": judge.path,
        "split": split,
        "max_completion_length": config.max_completion_length,
        "eval_batch_size": batch_size,
    } | {name: config.data[name] for name in PROMPT_SETTINGS}
    with jax.set_mesh(judge.mesh), preemption_guard() as should_stop:
        metrics = evaluate_split(work, judge.parameters, settings, should_stop, scenes)
    if metrics is not None and jax.process_index() == 0:
        print(format_table({epath.Path(checkpoint).name: metrics}))
        if "facts" in metrics:
            print(format_facts(metrics["facts"]))
        print(out)
    return metrics is not None
