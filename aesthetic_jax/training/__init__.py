"""Training: state, SFT and GRPO steps, the loop, metrics, sharding."""
