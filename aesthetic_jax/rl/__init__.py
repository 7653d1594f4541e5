"""Reinforcement learning: rewards, advantages, losses, rollouts, evaluation metrics."""

from aesthetic_jax.rl.advantages import group_advantages
from aesthetic_jax.rl.losses import LOSS_TYPES, policy_loss, sft_loss
from aesthetic_jax.rl.metrics import summarize
from aesthetic_jax.rl.rewards import (
    VARIANTS,
    Scores,
    compute_rewards,
    dpa_reward,
    format_reward,
    parse_answer,
)
from aesthetic_jax.rl.rollouts import Rollout, Sampling, decode, rollout, sample_completions

__all__ = [
    "LOSS_TYPES",
    "VARIANTS",
    "Rollout",
    "Sampling",
    "Scores",
    "compute_rewards",
    "decode",
    "dpa_reward",
    "format_reward",
    "group_advantages",
    "parse_answer",
    "policy_loss",
    "rollout",
    "sample_completions",
    "sft_loss",
    "summarize",
]
