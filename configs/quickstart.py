"""The whole recipe at a size that two CPU cores train in minutes: `configs/quickstart.py:METHOD`.

METHOD is pretrain, sft, grpo, dpa_grpo, hcm_grpo or hcm_grpo_online. `pretrain` trains a model from
scratch to see; InternVL3 already can. The last four differ only in reward and mining, as in the
paper's ablation. `hcm_grpo` mines before training, as the paper does; `hcm_grpo_online` mines by
training's own rollouts.
"""

from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.config import grpo_config, sft_config

_STAGE2 = {
    "grpo": ("exact", "off"),
    "dpa_grpo": ("subset", "off"),
    "hcm_grpo": ("subset", "two_stage"),
    "hcm_grpo_online": ("subset", "online"),
}


def get_config(method: str = "sft") -> ConfigDict:
    """The config of one method; needs --config.data.data_dir and --config.init_from."""
    if method == "pretrain":
        config = _pretrain()
    elif method == "sft":
        config = _sft()
    elif method in _STAGE2:
        config = _grpo(*_STAGE2[method])
    else:
        raise UserError(
            f"configs/quickstart.py: no method '{method}'; choose from pretrain, sft, "
            f"{', '.join(_STAGE2)}"
        )
    config.micro_batches = 1
    # At the language model's rate, a tower from scratch stops distinguishing images.
    config.optimizer.vision_lr_scale = 0.3
    config.optimizer.b2 = 0.95  # for runs of at most thousands of updates
    config.eval_every = 0
    config.eval_batch_size = 128
    config.checkpoint_every = 1000

    config.model.preset = "tiny"
    config.model.vocab_size = 1024
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.threads = 2
    return config


def _pretrain() -> ConfigDict:
    """Learning to see: descriptions of single images."""
    config = sft_config()
    config.batch_size = 64
    config.num_steps = 1600
    config.log_every = 50
    config.optimizer.learning_rate = 1.4e-3
    config.optimizer.end_lr_ratio = 0.2
    config.optimizer.warmup_updates = 20
    config.model.freeze = ()
    config.data.max_images = 1
    config.data.prompt_buckets = (18, 24)
    config.data.completion_buckets = (19, 24)
    config.max_completion_length = 24
    return config


def _sft() -> ConfigDict:
    """Stage 1: chains of thought about five images."""
    config = sft_config()
    config.batch_size = 16
    config.num_steps = 700
    config.log_every = 50
    config.optimizer.learning_rate = 7e-4
    config.optimizer.warmup_updates = 20
    config.model.freeze = ()
    _five_images(config)
    return config


def _grpo(variant: str, mining: str) -> ConfigDict:
    """Stage 2, with a reward variant and a way of mining."""
    config = grpo_config()
    config.batch_size = 16
    config.num_steps = 80
    config.optimizer.warmup_updates = 8
    config.optimizer.learning_rate = 1.5e-4
    config.model.freeze = ("vision", "projector")  # too few rewards to learn to see
    config.reward.variant = variant
    config.hard_cases.mode = mining
    config.hard_cases.round_steps = 10
    config.hard_cases.mine_rollouts = 4
    _five_images(config)
    return config


def _five_images(config: ConfigDict) -> None:
    """Lengths of prompts and thorough chains."""
    config.data.prompt_buckets = (64, 80)
    config.data.completion_buckets = (60, 64, 80)
    config.max_completion_length = 80
