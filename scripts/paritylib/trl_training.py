"""TRL's training of the model: losses, gradients and trajectories of SFTTrainer and GRPOTrainer."""

import tempfile
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from aesthetic_jax.checkpoints.hf_names import normalise
from paritylib import cases
from paritylib.torch_inputs import load_model, load_processor, user_turn
from paritylib.trl_losses import COMMON
from paritylib.work import Work


def _tensors(prefix: str, tensors) -> dict[str, np.ndarray]:
    return {
        f"{prefix}/{normalise(name)}": x.detach().numpy().copy()
        for name, x in tensors
        if x is not None
    }


def _take_gradients(model) -> dict[str, np.ndarray]:
    """The gradient of each parameter; clears them in the model."""
    gradients = _tensors("gradients", ((name, x.grad) for name, x in model.named_parameters()))
    model.zero_grad()
    return gradients


def _keep_outputs(model) -> list:
    """A list that collects the model's outputs; their log-probabilities keep their gradient."""
    kept = []

    def keep(_, __, outputs):
        outputs.log_probs.retain_grad()
        kept.append(outputs)

    model.register_forward_hook(keep)
    return kept


def _history(trainer, name: str) -> np.ndarray:
    return np.array([entry[name] for entry in trainer.state.log_history if name in entry])


def _trainer_settings(learning_rate: float) -> dict[str, Any]:
    return dict(
        learning_rate=learning_rate,
        weight_decay=cases.OPTIMIZER["weight_decay"],
        adam_beta1=cases.OPTIMIZER["b1"],
        adam_beta2=cases.OPTIMIZER["b2"],
        adam_epsilon=cases.OPTIMIZER["epsilon"],
        optim="adamw_torch",
        max_grad_norm=cases.OPTIMIZER["clip_norm"],
        lr_scheduler_type="linear",
        warmup_steps=0,
        logging_steps=1,
        max_steps=cases.STEPS,
        disable_tqdm=True,
        **COMMON,
    )


def _run(trainer) -> dict:
    """Trains; returns losses, gradient norms and the final weights."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "losses": _history(trainer, "loss"),
        "grad_norms": _history(trainer, "grad_norm"),
        **_tensors("weights", trainer.model.named_parameters()),
    }


# --- SFT ---


def _sft_trainer(work: Work, folder: str) -> SFTTrainer:
    rows = [
        {
            "prompt": user_turn(sample),
            "completion": [
                {"role": "assistant", "content": [{"type": "text", "text": sample.completion}]}
            ],
            "images": list(sample.images),
        }
        for sample in cases.samples(work, cases.SFT_SAMPLES, seed=3)
    ]
    arguments = SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=cases.SFT_BATCH // cases.MICROBATCHES,
        gradient_accumulation_steps=cases.MICROBATCHES,
        max_length=None,
        train_sampling_strategy="sequential",
        **_trainer_settings(cases.OPTIMIZER["learning_rate"]),
    )
    return SFTTrainer(
        model=load_model(work),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=load_processor(work),
    )


def sft(work: Work) -> dict:
    """SFTTrainer's loss of one batch, its gradient in the log-probabilities and each parameter."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _sft_trainer(work, folder)
    batch = trainer.data_collator(
        [trainer.train_dataset[number] for number in range(cases.SFT_BATCH)]
    )
    model = trainer.model.train()
    kept = _keep_outputs(model)
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    outputs = kept[-1]
    return {
        "loss": loss.detach().numpy(),
        "tokens": np.array([outputs.label_mask.sum().item()]),
        "gradient": outputs.log_probs.grad[outputs.label_mask].numpy(),
        **_take_gradients(model),
    }


def sft_run(work: Work) -> dict:
    """20 steps of SFTTrainer.train() over the samples in order."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(_sft_trainer(work, folder))


# --- GRPO ---


def _grpo_trainer(work: Work, folder: str) -> GRPOTrainer:
    """A GRPOTrainer with given completions and rewards; everything else is TRL's."""
    samples = cases.samples(work, cases.GRPO_SAMPLES, seed=4)
    data = Dataset.from_list(
        [{"prompt": user_turn(sample), "images": list(sample.images)} for sample in samples]
    )
    rows = cases.GRPO_BATCH * cases.GROUP
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows,
        num_generations=cases.GROUP,
        beta=cases.BETA,
        max_completion_length=cases.COMPLETION,
        temperature=cases.TEMPERATURE,
        loss_type=cases.LOSS_TYPE,
        num_iterations=cases.UPDATES_PER_ROLLOUT,
        shuffle_dataset=False,
        **_trainer_settings(cases.GRPO_LEARNING_RATE),
    )
    scored_rollouts = iter(range(cases.STEPS))
    trainer = GRPOTrainer(
        model=load_model(work),
        args=arguments,
        train_dataset=data,
        processing_class=load_processor(work),
        reward_funcs=lambda completions, **_: (
            cases.rewards(next(scored_rollouts)).reshape(-1).tolist()
        ),
    )
    generated_rollouts = iter(range(cases.STEPS))
    end = trainer.processing_class.tokenizer.eos_token_id

    def given_completions(*_):
        ids, mask = cases.completions(rows, end, seed=100 + next(generated_rollouts))
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)], None

    trainer._generate_single_turn = given_completions
    return trainer


def grpo(work: Work) -> dict:
    """GRPOTrainer._compute_loss of the model, off policy, with a reference; all gradients."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _grpo_trainer(work, folder)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    inputs = [
        trainer.train_dataset[number]
        for number in range(cases.GRPO_BATCH)
        for _ in range(cases.GROUP)
    ]
    batch = trainer._generate_and_score_completions(inputs)
    mask = batch["completion_mask"]
    shift = torch.tensor(
        np.random.default_rng(5).normal(size=(2, *mask.shape)), dtype=torch.float32
    )
    batch["ref_per_token_logps"] = batch["ref_per_token_logps"] + 0.2 * shift[0]
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.3 * shift[1]
    kept = _keep_outputs(model)
    loss = trainer._compute_loss(model, batch)
    loss.backward()
    gradient = kept[-1].log_probs.grad[:, -mask.shape[1] :][mask.bool()].numpy()
    return {"loss": loss.detach().numpy(), "gradient": gradient, **_take_gradients(model)}


def grpo_run(work: Work) -> dict:
    """20 steps of GRPOTrainer.train(), two on each rollout."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(_grpo_trainer(work, folder))


SECTIONS = {section.__name__: section for section in (sft, grpo, sft_run, grpo_run)}
