"""Stage 1 of InternVL3-2B: SFT on chains of thought."""

from ml_collections import ConfigDict

from aesthetic_jax.training.config import sft_config


def get_config() -> ConfigDict:
    """Needs OpenGVLab/InternVL3-2B as --config.init_from and data as --config.data.data_dir."""
    config = sft_config()
    return config
