"""The arms of scripts/study.sh: four ways to sample, four other rewards, and the paper's method.

Every arm has the same budget of completions, its mining included: 160 steps x 16 prompts x 8
completions = 20,480. `two_stage` mining answers each of the pool's 1,000 samples 4 times before
step 0: 4,000 completions, as many as 31.25 steps. Arms with it take 160 - 32 = 128 steps, and use
128 x 128 + 4,000 = 20,384 completions.

A round is 16 steps, 256 visits, so that 160 and 128 steps are whole rounds: 10 and 8. An online arm
draws 9 plans from its own rollouts, the first after a quarter of the pool. A shorter round would
add few answers to the next plan; rounds of 50 steps, the default, would leave 3 such plans.
"""

import math

from ml_collections import ConfigDict

POOL = 1000  # samples to train on
STEPS, BATCH, GROUP = 160, 16, 8
MINE_ROLLOUTS = 4


def get_config() -> ConfigDict:
    """A config, and the fields that each experiment changes."""
    off = _fields(STEPS, "off")
    online = _fields(STEPS, "online")
    mining_steps = math.ceil(POOL * MINE_ROLLOUTS / (BATCH * GROUP))
    two_stage = (
        *_fields(STEPS - mining_steps, "two_stage"),
        f"hard_cases.mine_rollouts={MINE_ROLLOUTS}",
    )
    subset = "reward.variant=subset"
    sweep = ConfigDict()
    sweep.config = "configs/quickstart.py:grpo"  # with the exact reward
    sweep.experiments = (
        ("uniform", off),
        ("failure", (*online, "hard_cases.weighting=failure")),
        ("variance", (*online, "hard_cases.weighting=variance")),
        ("two_stage", two_stage),
        ("subset", (*off, subset)),
        ("subset_gated", (*off, subset, "reward.gate=exact")),
        ("per_option", (*off, "reward.variant=per_option")),
        ("dpa_anneal", (*off, subset, "reward.dpa_anneal=True")),
        ("paper_hcm", (*two_stage, subset)),
    )
    return sweep


def _fields(steps: int, mode: str) -> tuple[str, ...]:
    """What the arms have in common, for a number of steps and a way to mine."""
    return (
        f"num_steps={steps}",
        f"batch_size={BATCH}",
        f"grpo.num_generations={GROUP}",
        f"hard_cases.mode={mode}",
        "hard_cases.round_steps=16",
        "log_every=1",
    )
