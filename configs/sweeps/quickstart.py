"""The paper's ablation at quickstart size: partial credit, and both ways to mine."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """A config, and the fields that each experiment changes."""
    sweep = ConfigDict()
    sweep.config = "configs/quickstart.py:hcm_grpo"
    sweep.experiments = (
        ("grpo", ("reward.variant=exact", "hard_cases.mode=off")),
        ("dpa_grpo", ("reward.variant=subset", "hard_cases.mode=off")),
        (
            "hcm_grpo",
            ("reward.variant=subset", "hard_cases.mode=two_stage", "hard_cases.mine_rollouts=4"),
        ),
        ("hcm_grpo_online", ("reward.variant=subset", "hard_cases.mode=online")),
    )
    return sweep
