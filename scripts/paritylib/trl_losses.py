"""TRL's advantages and losses on given arrays, from GRPOTrainer itself."""

import tempfile
from collections.abc import Callable

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from paritylib import cases
from paritylib.work import Work

# Settings that all trainers share.
COMMON = dict(
    use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", seed=0
)


def _text_trainer(folder: str, rewards: Callable | None = None, **settings) -> GRPOTrainer:
    """A GRPOTrainer with a minimal text model, which doesn't affect these results."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    config = Qwen2Config(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    model.config._name_or_path = folder  # where TRL loads the reference model from
    rows = cases.GRPO_BATCH * cases.GROUP
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        num_generations=cases.GROUP,
        max_steps=1,
        max_completion_length=cases.COMPLETION,
        **COMMON,
        **settings,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=rewards or (lambda completions, **_: [0.0] * len(completions)),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * rows),
        args=arguments,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def advantages(_: Work) -> dict:
    """GRPOTrainer's advantages [B, G] of given rewards, for each scaling."""
    rewards = cases.rewards(0).reshape(-1).tolist()
    arrays = {}
    for scale in cases.SCALES:
        with tempfile.TemporaryDirectory() as folder:
            trainer = _text_trainer(folder, lambda completions, **_: rewards, scale_rewards=scale)
            trainer._generate_single_turn = lambda ids, *_: ([[2, 1]] * len(ids), None)
            batch = trainer._generate_and_score_completions([{"prompt": "a"}] * len(rewards))
            arrays[scale] = batch["advantages"].numpy().reshape(-1, cases.GROUP)
    return arrays


def losses(_: Work) -> dict:
    """GRPOTrainer._compute_loss on given log-probabilities, and its gradient in them."""
    arrays = cases.loss_arrays()
    rows = cases.GRPO_BATCH * cases.GROUP
    flat = {name: torch.tensor(x.reshape(rows, *x.shape[2:])) for name, x in arrays.items()}
    mask = flat["mask"].long()
    computed = {}
    for name, settings in cases.LOSSES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = _text_trainer(folder, **settings)
        leaf = flat["logprobs"].clone().requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, leaf=leaf, **__: (
            leaf,
            torch.zeros_like(leaf),
            None,
        )
        batch = dict(
            prompt_ids=torch.full((rows, 1), 2),
            prompt_mask=torch.ones(rows, 1, dtype=torch.long),
            completion_ids=torch.full(mask.shape, 2),
            completion_mask=mask,
            advantages=flat["advantages"].reshape(-1),
            num_items_in_batch=mask.sum(),
            old_per_token_logps=flat["old_logprobs"],
            ref_per_token_logps=flat["ref_logprobs"],
        )
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        computed[f"{name}/loss"] = loss.detach().numpy()
        computed[f"{name}/gradient"] = leaf.grad.numpy().reshape(arrays["mask"].shape)
    return computed


SECTIONS = {section.__name__: section for section in (advantages, losses)}
