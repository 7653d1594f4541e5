"""Stage 2 of InternVL3-2B: HCM-GRPO with hard cases found by training's own rollouts."""

from ml_collections import ConfigDict

from aesthetic_jax.training.config import grpo_config


def get_config() -> ConfigDict:
    """Needs the SFT run as --config.init_from and a data set as --config.data.data_dir."""
    config = grpo_config()
    config.reward.variant = "subset"
    config.hard_cases.mode = "online"
    return config
