"""Trains as a config says: SFT or GRPO. Started again with the same --workdir, it goes on from the newest checkpoint.

aesthetic-jax train --config=configs/X.py --workdir=DIR [--config.a.b=value ...]
"""

from absl import flags

from aesthetic_jax.command_line import define_config, require

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("workdir", None, "run directory, may be gs://", flag_values=FLAGS)
flags.DEFINE_bool("dry_run", False, "build everything abstractly, print its size, and stop", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config = require(arguments, "config")
    if arguments.dry_run:
        from aesthetic_jax.training.model import describe

        print(describe(config))
        return
    workdir = require(arguments, "workdir")
    from aesthetic_jax.training.loop import train

    train(config, workdir)
    print(workdir)
