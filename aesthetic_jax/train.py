r"""Trains a config: SFT or GRPO. The same command resumes from the newest whole checkpoint.

Example:
  aesthetic-jax train --config=configs/sft_internvl3_2b.py --config.init_from=InternVL3-2B \
    --config.data.data_dir=photos/data --workdir=runs/sft

--config.FIELD=VALUE overrides any field of aesthetic_jax/training/config.py. On several hosts,
start the same command on each, with a --workdir that all can access. SIGTERM at any host stops the
run after the current step (while mining: batch), with a checkpoint and exit code 75.
"""

from absl import flags

from aesthetic_jax.command_line import (
    define_config,
    define_hosts,
    exit_stopped,
    joined_hosts,
    require,
)

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("workdir", None, "run directory, may be gs://", flag_values=FLAGS)
define_hosts(FLAGS)
flags.DEFINE_bool(
    "allow_config_change", False, "resume although the config has changed", flag_values=FLAGS
)
flags.DEFINE_bool("dry_run", False, "print the model's size and stop", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Trains --config in --workdir."""
    config = require(arguments, "config")
    if arguments.dry_run:
        from aesthetic_jax.training.model import describe

        print(describe(config))
        return
    workdir = require(arguments, "workdir")
    with joined_hosts(arguments):
        from aesthetic_jax.training.loop import train

        finished = train(config, workdir, arguments.allow_config_change)
    if not finished:
        exit_stopped(workdir)
    print(workdir)
