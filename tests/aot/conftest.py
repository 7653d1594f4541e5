"""A fixture of abstract setups of a tiny model on one CPU device."""

import jax
import pytest

from aesthetic_jax.aot import programs
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.training.config import grpo_config, sft_config
from aesthetic_jax.training.mesh import make_mesh

ARCHITECTURE = InternVLConfig(
    VisionConfig(width=16, layers=1, heads=2, mlp_width=24, image_size=28, patch_size=14),
    TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=32),
    image_token=3,
    remat="none",
)


@pytest.fixture
def make_setup(monkeypatch):
    """Makes an abstract setup: (method, fields of the config to set)."""
    monkeypatch.setattr(programs, "config_architecture", lambda config: ARCHITECTURE)

    def make(method, **fields):
        config = sft_config() if method == "sft" else grpo_config()
        config.batch_size, config.micro_batches, config.max_completion_length = 8, 2, 6
        config.data.prompt_buckets, config.data.completion_buckets = (8, 12), (4, 6)
        for field, value in fields.items():
            section, _, name = field.rpartition("__")
            (config[section] if section else config)[name] = value
        return programs.abstract_setup(config, make_mesh(config.mesh, jax.devices()[:1]))

    return make
