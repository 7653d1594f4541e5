"""Reinforcement learning: rewards, advantages, losses, rollouts, scores."""
