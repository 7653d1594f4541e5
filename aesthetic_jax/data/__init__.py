"""Data: manifest, synthetic scenes, built data sets, prompts, images, batches, hard cases."""
