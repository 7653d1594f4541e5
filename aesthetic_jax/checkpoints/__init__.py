"""Checkpoints: Hugging Face safetensors in and out, Orbax training state."""
