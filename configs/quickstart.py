"""The whole recipe at a size that two CPU cores train in minutes: `configs/quickstart.py:METHOD`.

METHOD is pretrain, sft, grpo, dpa_grpo or hcm_grpo. `pretrain` trains a model from scratch to see;
InternVL3 already can. The last three differ only in reward and mining, as in the paper's ablation.
"""

from ml_collections import ConfigDict

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.config import grpo_config, sft_config

_STAGE2 = {
    "grpo": ("exact", "off"),
    "dpa_grpo": ("subset", "off"),
    "hcm_grpo": ("subset", "online"),
}


def get_config(method: str = "sft") -> ConfigDict:
    """The config of one method; needs --config.data.data_dir and --config.init_from."""
    if method in ("pretrain", "sft"):
        config = sft_config()
        config.batch_size = 16
        config.num_steps = 1400 if method == "pretrain" else 450
        config.optimizer.learning_rate = 1.4e-3 if method == "pretrain" else 7e-4
        config.optimizer.end_lr_ratio = 0.5 if method == "pretrain" else 0.0
        config.optimizer.warmup_updates = 20
        config.model.freeze = ()
        config.log_every = 50
        config.data.completion_buckets = (40, 60, 72)
    elif method in _STAGE2:
        config = grpo_config()
        config.num_steps = 70
        config.batch_size = 16
        config.optimizer.learning_rate = 5e-4
        config.optimizer.warmup_updates = 8
        config.model.freeze = ("vision",)
        config.reward.variant, config.hard_cases.mode = _STAGE2[method]
        config.hard_cases.round_steps = 10
        config.data.completion_buckets = (40, 72)
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
    config.max_completion_length = 72

    config.model.preset = "tiny"
    config.model.vocab_size = 1024
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.data.prompt_buckets = (64, 80)
    config.data.threads = 2
    return config
