"""The TRL side of parity.py: advantages, losses, gradients and trajectories of GRPOTrainer and SFTTrainer."""

import tempfile
from collections.abc import Callable

import numpy as np
import parity_cases as cases
import torch
from datasets import Dataset
from parity_cases import Work
from parity_torch import load_model, load_processor, message
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from aesthetic_jax.checkpoints.hf_names import normalise

COMMON = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", seed=0)

# --- On arrays ---


def _text_trainer(folder: str, rewards: Callable | None = None, **settings) -> GRPOTrainer:
    """A GRPOTrainer around a minute text model; what it computes on given arrays doesn't depend on the model."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="a")),
        pad_token="<pad>",
        eos_token="<eos>",
    )
    size = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=3, **size))
    model.save_pretrained(folder)
    model.config._name_or_path = folder  # where TRL loads the reference model from
    rows = cases.GRPO_BATCH * cases.GROUP
    arguments = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=rows, num_generations=cases.GROUP, max_steps=1,
        max_completion_length=cases.COMPLETION, **COMMON, **settings,
    )  # fmt: skip
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
    """GRPOTrainer's advantages of given rewards, for each scaling."""
    found = {}
    for scale in cases.SCALES:
        with tempfile.TemporaryDirectory() as folder:
            given = cases.rewards(0).reshape(-1)
            trainer = _text_trainer(folder, lambda completions, given=given, **_: given.tolist(), scale_rewards=scale)
            trainer._generate_single_turn = lambda ids, *_: ([[2, 1]] * len(ids), None)
            batch = trainer._generate_and_score_completions([{"prompt": "a"}] * given.size)
            found[scale] = batch["advantages"].numpy().reshape(-1, cases.GROUP)
    return found


def losses(_: Work) -> dict:
    """GRPOTrainer._compute_loss on given log-probabilities, and its gradient in them."""
    arrays = cases.loss_arrays()
    rows = cases.GRPO_BATCH * cases.GROUP
    flat = {name: torch.tensor(x.reshape(rows, *x.shape[2:])) for name, x in arrays.items()}
    mask = flat["mask"].long()
    found = {}
    for name, settings in cases.LOSSES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = _text_trainer(folder, **settings)
        leaf = flat["logprobs"].clone().requires_grad_()
        trainer._get_per_token_logps_and_entropies = lambda *_, leaf=leaf, **__: (leaf, torch.zeros_like(leaf), None)
        batch = dict(
            prompt_ids=torch.full((rows, 1), 2), prompt_mask=torch.ones(rows, 1, dtype=torch.long),
            completion_ids=torch.full(mask.shape, 2), completion_mask=mask, advantages=flat["advantages"].reshape(-1),
            num_items_in_batch=mask.sum(), old_per_token_logps=flat["old_logprobs"],
            ref_per_token_logps=flat["ref_logprobs"],
        )  # fmt: skip
        loss = trainer._compute_loss(trainer.model, batch)
        loss.backward()
        found[f"{name}/loss"] = loss.detach().numpy()
        found[f"{name}/gradient"] = leaf.grad.numpy().reshape(arrays["mask"].shape)
    return found


# --- On the model ---


def _named(prefix: str, tensors) -> dict[str, np.ndarray]:
    return {f"{prefix}/{normalise(name)}": x.detach().numpy().copy() for name, x in tensors if x is not None}


def _gradients(model) -> dict[str, np.ndarray]:
    found = _named("gradients", ((name, x.grad) for name, x in model.named_parameters()))
    model.zero_grad()
    return found


def _keep_outputs(model) -> list:
    """A list that the model's outputs are put in, their log-probabilities ready to keep a gradient."""
    kept = []

    def keep(_, __, outputs):
        outputs.log_probs.retain_grad()
        kept.append(outputs)

    model.register_forward_hook(keep)
    return kept


def _history(trainer, name: str) -> np.ndarray:
    return np.array([entry[name] for entry in trainer.state.log_history if name in entry])


def _trainer_settings(learning_rate: float) -> dict:
    return dict(
        learning_rate=learning_rate, weight_decay=cases.OPTIMIZER["weight_decay"], adam_beta1=cases.OPTIMIZER["b1"],
        adam_beta2=cases.OPTIMIZER["b2"], adam_epsilon=cases.OPTIMIZER["epsilon"], optim="adamw_torch",
        max_grad_norm=cases.OPTIMIZER["clip_norm"], lr_scheduler_type="linear", warmup_steps=0, logging_steps=1,
        max_steps=cases.STEPS, disable_tqdm=True, **COMMON,
    )  # fmt: skip


def _sft_trainer(work: Work, folder: str) -> SFTTrainer:
    rows = [
        {
            "prompt": message(sample),
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": sample.completion}]}],
            "images": list(sample.images),
        }
        for sample in cases.samples(work, cases.SFT_SAMPLES, seed=3)
    ]
    arguments = SFTConfig(
        output_dir=folder, per_device_train_batch_size=cases.SFT_BATCH // cases.MICRO_BATCHES,
        gradient_accumulation_steps=cases.MICRO_BATCHES, max_length=None, train_sampling_strategy="sequential",
        **_trainer_settings(cases.OPTIMIZER["learning_rate"]),
    )  # fmt: skip
    return SFTTrainer(
        model=load_model(work), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=load_processor(work),
    )  # fmt: skip


def sft(work: Work) -> dict:
    """SFTTrainer's loss on one batch, its gradient in the log-probabilities and in every parameter."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _sft_trainer(work, folder)
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(cases.SFT_BATCH)])
    model = trainer.model.train()
    kept = _keep_outputs(model)
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    outputs = kept[-1]
    gradient = outputs.log_probs.grad[outputs.label_mask].numpy()
    tokens = np.array([outputs.label_mask.sum().item()])
    return {"loss": loss.detach().numpy(), "tokens": tokens, "gradient": gradient, **_gradients(model)}


def sft_run(work: Work) -> dict:
    """20 steps of SFTTrainer.train() over the samples in order."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(_sft_trainer(work, folder))


def _run(trainer) -> dict:
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {
        "losses": _history(trainer, "loss"),
        "grad_norms": _history(trainer, "grad_norm"),
        **_named("weights", trainer.model.named_parameters()),
    }


def _grpo_trainer(work: Work, folder: str) -> GRPOTrainer:
    """A GRPOTrainer whose completions and rewards are given; everything else is TRL's."""
    drawn = cases.samples(work, cases.GRPO_SAMPLES, seed=4)
    data = Dataset.from_list([{"prompt": message(sample), "images": list(sample.images)} for sample in drawn])
    rows = cases.GRPO_BATCH * cases.GROUP
    arguments = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=rows, num_generations=cases.GROUP, beta=cases.BETA,
        max_completion_length=cases.COMPLETION, temperature=cases.TEMPERATURE, loss_type=cases.LOSS_TYPE,
        num_iterations=cases.UPDATES_PER_ROLLOUT, shuffle_dataset=False,
        **_trainer_settings(cases.GRPO_LEARNING_RATE),
    )  # fmt: skip
    scored = iter(range(cases.STEPS))
    trainer = GRPOTrainer(
        model=load_model(work), args=arguments, train_dataset=data, processing_class=load_processor(work),
        reward_funcs=lambda completions, **_: cases.rewards(next(scored)).reshape(-1).tolist(),
    )  # fmt: skip
    generated = iter(range(cases.STEPS))
    end = trainer.processing_class.tokenizer.eos_token_id

    def given(*_):
        ids, mask = cases.completions(rows, end, seed=100 + next(generated))
        return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)], None

    trainer._generate_single_turn = given
    return trainer


def grpo(work: Work) -> dict:
    """GRPOTrainer._compute_loss of the whole model, off policy, with a reference; and every parameter's gradient."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _grpo_trainer(work, folder)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    inputs = [trainer.train_dataset[number] for number in range(cases.GRPO_BATCH) for _ in range(cases.GROUP)]
    batch = trainer._generate_and_score_completions(inputs)
    mask = batch["completion_mask"]
    shift = torch.tensor(np.random.default_rng(5).normal(size=(2, *mask.shape)), dtype=torch.float32)
    batch["ref_per_token_logps"] = batch["ref_per_token_logps"] + 0.2 * shift[0]
    batch["old_per_token_logps"] = batch["old_per_token_logps"] + 0.3 * shift[1]
    kept = _keep_outputs(model)
    loss = trainer._compute_loss(model, batch)
    loss.backward()
    gradient = kept[-1].log_probs.grad[:, -mask.shape[1] :][mask.bool()].numpy()
    return {"loss": loss.detach().numpy(), "gradient": gradient, **_gradients(model)}


def grpo_run(work: Work) -> dict:
    """20 steps of GRPOTrainer.train(), two on every rollout."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(_grpo_trainer(work, folder))


SECTIONS = {section.__name__: section for section in (advantages, losses, sft, grpo, sft_run, grpo_run)}
