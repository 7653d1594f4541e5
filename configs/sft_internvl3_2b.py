"""Stage 1 at the paper's size: InternVL3-2B on chains of thought."""

from ml_collections import ConfigDict

from aesthetic_jax.training.config import sft_config


def get_config() -> ConfigDict:
    """Give it an InternVL3-2B directory as --config.init_from and a data set as --config.data.data_dir."""
    config = sft_config()
    return config
