"""bench.py's work done by TRL and transformers."""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchlib.inputs import jpegs, sft_lengths
from benchlib.peer_model import DEVICE, group_inputs, image_processor, make_model
from benchlib.sizes import Size


def _median_seconds(work: Callable[[], Any], reps: int) -> float:
    """Median time of a call, after one that warms up."""
    times = []
    for _ in range(reps + 1):
        start = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _trainer_settings(size: Size, folder: str) -> dict[str, Any]:
    """Settings that both trainers share."""
    large = size.config.dtype == "bfloat16"
    return dict(
        output_dir=folder,
        use_cpu=DEVICE == "cpu",
        bf16=large,
        gradient_checkpointing=large,
        report_to=[],
        save_strategy="no",
        max_steps=2,
    )


def _grpo_trainer(size: Size, group: int) -> GRPOTrainer:
    model, processor = make_model(size)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.config._name_or_path = folder  # where TRL loads the reference model from
        arguments = GRPOConfig(
            per_device_train_batch_size=group,
            num_generations=group,
            max_completion_length=size.completion,
            beta=0.04,
            loss_type="grpo",
            **_trainer_settings(size, folder),
        )
        question = {"prompt": [{"role": "user", "content": "q"}]}
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            processing_class=processor,
            train_dataset=Dataset.from_list([question] * 2 * group),
            args=arguments,
        )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def grpo_update(size: Size, group: int, reps: int) -> dict[str, Any]:
    """One GRPO update on one prompt's group, the reference's log-probabilities included."""
    trainer = _grpo_trainer(size, group)
    inputs = group_inputs(size, group)
    completion = torch.randint(1, 250, (group, size.completion), device=DEVICE)
    ids = torch.cat([inputs["input_ids"], completion], 1)
    images = dict(
        pixel_values=inputs["pixel_values"],
        num_images=[size.images] * group,
        num_tiles=[size.images] * group,
    )
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
    batch = dict(
        prompt_ids=inputs["input_ids"],
        prompt_mask=inputs["attention_mask"],
        completion_ids=completion,
        completion_mask=torch.ones_like(completion),
        advantages=torch.randn(group, device=DEVICE),
        num_items_in_batch=torch.tensor(completion.numel()),
        **images,
    )

    def update():
        with torch.no_grad():
            reference = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, torch.ones_like(ids), size.completion, **images
            )[0]
        trainer._compute_loss(trainer.model, batch | {"ref_per_token_logps": reference}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return dict(
        update_s=_median_seconds(update, reps),
        prompt=inputs["input_ids"].shape[1],
        completion=size.completion,
    )


@torch.no_grad()
def rollout(size: Size, group: int, reps: int) -> dict[str, Any]:
    """`generate` of one prompt's group, sampling, each completion to its full length."""
    model, _ = make_model(size)
    inputs = group_inputs(size, group)
    length = dict(max_new_tokens=size.completion, min_new_tokens=size.completion)
    seconds = _median_seconds(
        lambda: model.eval().generate(**inputs, do_sample=True, **length), reps
    )
    tokens_per_s = group * size.completion / seconds
    return dict(
        rollout_s=seconds, tokens_per_s=round(tokens_per_s, 1), prompt=inputs["input_ids"].shape[1]
    )


def _sft_row(question: str, completion: str, images: list[Image.Image]) -> dict[str, Any]:
    content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": completion}]}]
    return {
        "prompt": [{"role": "user", "content": content}],
        "completion": answer,
        "images": images,
    }


def _sft_trainer(size: Size) -> tuple[SFTTrainer, dict[str, Any]]:
    """SFTTrainer and its collated batch of the lengths of `sft_lengths`; a byte is a token."""
    model, processor = make_model(size)
    texts, completions = sft_lengths(size)
    rng = np.random.default_rng(0)
    side = size.config.vision.image_size
    images = [
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)) for _ in range(size.images)
    ]

    def collate(rows: list[dict]) -> tuple[SFTTrainer, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(
                per_device_train_batch_size=len(rows),
                max_length=None,
                **_trainer_settings(size, folder),
            )
            trainer = SFTTrainer(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=processor,
            )
            samples = [trainer.train_dataset[i] for i in range(len(rows))]
            return trainer, trainer.data_collator(samples)

    _, probe = collate([_sft_row("q", "a", images)])
    labels = int((probe["labels"] != -100).sum())
    prompt = int(probe["attention_mask"].sum()) - labels
    image_tokens = size.images * size.config.tokens_per_tile
    return collate(
        [
            _sft_row(
                "q" * (1 + image_tokens + text - prompt), "a" * (1 + completion - labels), images
            )
            for text, completion in zip(texts, completions, strict=True)
        ]
    )


def sft_step(size: Size, _: int, reps: int) -> dict[str, Any]:
    """One SFT step on samples of bench.py's lengths; tokenising and collating are not timed."""
    trainer, batch = _sft_trainer(size)
    batch = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
    trainer.model.train()

    def step():
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return dict(
        step_s=_median_seconds(step, reps),
        samples=len(batch["input_ids"]),
        tokens=int(batch["attention_mask"].sum()),
        completion_tokens=int((batch["labels"] != -100).sum()),
    )


def images(_: Size, __: int, reps: int) -> dict[str, Any]:
    """Five JPEGs of 1024 px through the image processor, on one core, decoding included."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    encoded = jpegs()
    processor, times = image_processor(448), []
    for _ in range(5 * reps + 1):
        start = time.perf_counter()
        decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
        decoding_end = time.perf_counter()
        processor(decoded, return_tensors="pt")
        end = time.perf_counter()
        times.append((end - start, end - decoding_end))
    seconds, tiling = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return dict(sample_s=seconds, tiling_s=tiling, images=len(encoded))
