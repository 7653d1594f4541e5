"""InternVL3 as an image screener in JAX: chain-of-thought SFT, then HCM-GRPO."""
