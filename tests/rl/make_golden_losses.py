"""Writes golden_losses.npz: GRPOTrainer._compute_loss and its gradient in the log-probabilities.

    python tests/rl/make_golden_losses.py

needs the parity extra.
"""

import pathlib

import numpy as np

# Case -> settings of policy_loss; TRL has the same names.
CASES = {
    "grpo": dict(loss_type="grpo"),
    "bnpo": dict(loss_type="bnpo"),
    "dr_grpo": dict(loss_type="dr_grpo"),
    "dapo": dict(loss_type="dapo"),
    "cispo": dict(loss_type="cispo", epsilon_high=1.2),
    "sapo": dict(loss_type="sapo"),
    "grpo_kl": dict(loss_type="grpo", beta=0.04),
    "dapo_kl_uncorrected": dict(loss_type="dapo", beta=0.1, use_bias_correction_kl=False),
    "dapo_delta": dict(loss_type="dapo", delta=1.3, epsilon_high=0.28),
    "grpo_sequence": dict(
        loss_type="grpo",
        importance_sampling_level="sequence",
        epsilon=0.05,
        epsilon_high=0.06,
        beta=0.04,
    ),
    "sapo_sequence": dict(loss_type="sapo", importance_sampling_level="sequence"),
}
B, G, T = 2, 4, 8


def inputs() -> dict[str, np.ndarray]:
    """Log-probabilities [B, G, T], ragged masks with one completion empty, advantages [B, G]."""
    rng = np.random.default_rng(0)
    logprobs = -rng.gamma(2.0, 0.5, (B, G, T))
    lengths = np.array([[8, 5, 3, 1], [8, 7, 0, 4]])
    return {
        "logprobs": logprobs.astype(np.float32),
        "old_logprobs": (logprobs + 0.3 * rng.normal(size=logprobs.shape)).astype(np.float32),
        "ref_logprobs": (logprobs + 0.2 * rng.normal(size=logprobs.shape)).astype(np.float32),
        "mask": np.arange(T) < lengths[..., None],
        "advantages": np.array([[1.2, -0.7, 0.3, -0.8], [0.5, -1.1, 0.9, -0.3]], np.float32),
    }


def trl_loss(case: dict, arrays: dict[str, np.ndarray]) -> tuple[float, np.ndarray]:
    """Loss and gradient [B, G, T] of one case; given log-probabilities replace the forward pass."""
    import tempfile

    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    vocabulary = {"<pad>": 0, "<eos>": 1, "a": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    size = dict(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=3, **size))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.config._name_or_path = folder  # where TRL loads the reference model from
        arguments = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=B * G,
            num_generations=G,
            max_completion_length=T,
            max_steps=1,
            report_to=[],
            **case,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "a"}] * (B * G)),
            args=arguments,
        )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    flat = {name: torch.tensor(x.reshape(B * G, *x.shape[2:])) for name, x in arrays.items()}
    leaf = flat["logprobs"].clone().requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (
        leaf,
        torch.zeros_like(leaf),
        None,
    )
    mask = flat["mask"].long()
    batch = dict(
        prompt_ids=torch.full((B * G, 1), 2),
        prompt_mask=torch.ones(B * G, 1, dtype=torch.long),
        completion_ids=torch.full((B * G, T), 2),
        completion_mask=mask,
        advantages=flat["advantages"].reshape(-1),
        num_items_in_batch=mask.sum(),
        old_per_token_logps=flat["old_logprobs"],
        ref_per_token_logps=flat["ref_logprobs"],
    )
    loss = trainer._compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), leaf.grad.numpy().reshape(B, G, T)


if __name__ == "__main__":
    arrays = inputs()
    results = {}
    for name, case in CASES.items():
        results[f"{name}/loss"], results[f"{name}/gradient"] = trl_loss(case, arrays)
    np.savez_compressed(pathlib.Path(__file__).with_name("golden_losses.npz"), **arrays, **results)
