"""Synthetic samples: products, scenes, flaws, and chains of thought written from the scene's facts."""
