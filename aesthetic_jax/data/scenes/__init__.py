"""Synthetic samples: products, scenes, flaws, and the chains of thought that describe them."""
