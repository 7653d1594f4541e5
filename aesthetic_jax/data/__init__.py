"""Data: manifest, synthetic scenes, TFDS builder, prompts, images, input pipeline, hard cases."""
