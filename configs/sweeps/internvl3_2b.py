"""InternVL3-2B: reward x mining x loss, 5 x 3 x 3 experiments; `--experiments=` picks some."""

import itertools

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A config, and the fields that each experiment changes."""
    sweep = ConfigDict()
    sweep.config = "configs/hcm_grpo_internvl3_2b.py"
    rewards = ("exact", "subset", "jaccard", "f1", "per_option")
    sweep.experiments = tuple(
        (
            f"{reward}-{mining}-{loss}",
            (f"reward.variant={reward}", f"hard_cases.mode={mining}", f"grpo.loss_type={loss}"),
        )
        for reward, mining, loss in itertools.product(
            rewards, ("off", "two_stage", "online"), ("dapo", "grpo", "dr_grpo")
        )
    )
    return sweep
