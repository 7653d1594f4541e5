"""Stage 2 of InternVL3-2B, HCM-GRPO: partial credit (DPA), and hard cases mined before training."""

from ml_collections import ConfigDict

from aesthetic_jax.training.config import grpo_config


def get_config() -> ConfigDict:
    """Needs the SFT run as --config.init_from and a data set as --config.data.data_dir."""
    config = grpo_config()
    config.reward.variant = "subset"
    config.hard_cases.mode = "two_stage"
    # Mining 102,400 samples costs 409,600 completions, a quarter of training's
    # 3,200 x 64 x 8 = 1,638,400. The default of 8 rollouts would cost half.
    config.hard_cases.mine_rollouts = 4
    return config
