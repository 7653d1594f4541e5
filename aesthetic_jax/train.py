"""Trains as a config says: SFT or GRPO. Started again with the same --workdir, it goes on from the newest whole checkpoint.

aesthetic-jax train --config=configs/X.py --workdir=DIR [--config.a.b=value ...]

On several hosts the same command runs on each; --workdir is then a path that all of them see. On SIGTERM, at one host or all,
a run ends behind the step that it is in, saves a checkpoint and exits with code 75; while it mines, behind a batch.
"""

from absl import flags

from aesthetic_jax.command_line import define_config, define_hosts, exit_stopped, joined_hosts, require

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("workdir", None, "run directory, may be gs://", flag_values=FLAGS)
define_hosts(FLAGS)
flags.DEFINE_bool(
    "allow_config_change", False, "go on although the config is not what the run was begun with", flag_values=FLAGS
)
flags.DEFINE_bool("dry_run", False, "build everything abstractly, print its size, and stop", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config = require(arguments, "config")
    if arguments.dry_run:
        from aesthetic_jax.training.model import describe

        print(describe(config))
        return
    workdir = require(arguments, "workdir")
    with joined_hosts(arguments):
        from aesthetic_jax.training.loop import train

        done = train(config, workdir, arguments.allow_config_change)
    if not done:
        exit_stopped(workdir)
    print(workdir)
