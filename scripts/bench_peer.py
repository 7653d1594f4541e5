"""The same work as scripts/bench.py, done by TRL and transformers; prints one JSON line.

    python scripts/bench_peer.py --benchmark=grpo_update --size=bench

Benchmarks grpo_update (GRPOTrainer._compute_loss, its reference model, backward, AdamW), rollout (transformers' generate,
sampling), sft_step (SFTTrainer.compute_loss on its own collated batch, backward, AdamW) and input (transformers' InternVL image
processor, PIL version, on one core). Needs the parity extra. At `2b` on a GPU everything is bfloat16 with sdpa attention and
gradient checkpointing.
"""

import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import bench
import numpy as np
import torch
from absl import flags
from datasets import Dataset
from parity_torch import CHAT_TEMPLATE, Processor, make_tokenizer
from PIL import Image
from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "benchmark", None, ["grpo_update", "rollout", "sft_step", "input"], "what to measure", flag_values=FLAGS
)
flags.DEFINE_enum("size", "bench", ["bench", "2b"], "how large a model", flag_values=FLAGS)
flags.DEFINE_integer("reps", 3, "runs that the median is of", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("group", 8, "completions per prompt", lower_bound=2, flag_values=FLAGS)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def median_seconds(work: Callable[[], Any], reps: int) -> float:
    """Median time of a call after one that warms up."""
    times = []
    for _ in range(reps + 1):
        began = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def image_processor(side: int) -> GotOcr2ImageProcessorPil:
    """One tile of `side` pixels an image."""
    size = dict(height=side, width=side)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return GotOcr2ImageProcessorPil(size=size, image_mean=mean, image_std=std, max_patches=1)


def make_model(size: bench.Size) -> tuple[InternVLForConditionalGeneration, Processor]:
    """The model with random weights, and a byte-level processor."""
    vision, text = size.config.vision, size.config.text
    tokenizer = make_tokenizer(text.vocab_size)
    config = InternVLConfig(
        vision_config=dict(
            hidden_size=vision.width, num_hidden_layers=vision.layers, num_attention_heads=vision.heads,
            intermediate_size=vision.mlp_width, image_size=[vision.image_size] * 2,
            patch_size=[vision.patch_size] * 2, attention_bias=True,
        ),
        text_config=dict(
            model_type="qwen2", hidden_size=text.width, num_hidden_layers=text.layers,
            num_attention_heads=text.heads, num_key_value_heads=text.kv_heads, intermediate_size=text.mlp_width,
            vocab_size=text.vocab_size, max_position_embeddings=32768, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=text.rope_theta),
        ),
        image_token_id=tokenizer.context_image_token_id, image_seq_length=size.config.tokens_per_tile,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).to(DEVICE, getattr(torch, size.config.dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Processor(
        image_processor=image_processor(vision.image_size), tokenizer=tokenizer,
        image_seq_length=size.config.tokens_per_tile, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    return model, processor


def settings(size: bench.Size, folder: str) -> dict[str, Any]:
    """What both trainers are given."""
    large = size.config.dtype == "bfloat16"
    return dict(
        output_dir=folder, use_cpu=DEVICE == "cpu", bf16=large, gradient_checkpointing=large, report_to=[],
        save_strategy="no", max_steps=2,
    )  # fmt: skip


def group_inputs(size: bench.Size, group: int) -> dict[str, torch.Tensor]:
    """bench.py's prompt and tiles, once for each completion, as TRL and generate take them."""
    prompt = bench.prompts(size)
    ids = torch.tensor(prompt["prompt_ids"]).long()
    ids[ids == size.config.image_token] = size.config.text.vocab_size - 1  # where make_tokenizer puts <IMG_CONTEXT>
    side = size.config.vision.image_size
    pixels = torch.randn(size.images, 3, side, side, dtype=getattr(torch, size.config.dtype))
    return dict(
        input_ids=ids.repeat(group, 1).to(DEVICE),
        attention_mask=torch.ones(group, ids.shape[1], dtype=torch.long, device=DEVICE),
        pixel_values=pixels.repeat(group, 1, 1, 1).to(DEVICE),
    )


def grpo_update(size: bench.Size, group: int, reps: int) -> dict[str, Any]:
    """One GRPO update on one prompt's group."""
    model, processor = make_model(size)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.config._name_or_path = folder  # where TRL loads the reference model from
        trainer = GRPOTrainer(
            model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), processing_class=processor,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}]}] * 2 * group),
            args=GRPOConfig(
                per_device_train_batch_size=group, num_generations=group, max_completion_length=size.completion,
                beta=0.04, loss_type="grpo", **settings(size, folder),
            ),
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = group_inputs(size, group)
    completion = torch.randint(1, 250, (group, size.completion), device=DEVICE)
    ids = torch.cat([inputs["input_ids"], completion], 1)
    images = dict(
        pixel_values=inputs["pixel_values"], num_images=[size.images] * group, num_tiles=[size.images] * group
    )
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6)
    batch = dict(
        prompt_ids=inputs["input_ids"], prompt_mask=inputs["attention_mask"], completion_ids=completion,
        completion_mask=torch.ones_like(completion), advantages=torch.randn(group, device=DEVICE),
        num_items_in_batch=torch.tensor(completion.numel()), **images,
    )  # fmt: skip

    def update():
        with torch.no_grad():
            reference = trainer._get_per_token_logps_and_entropies(
                trainer.ref_model, ids, torch.ones_like(ids), size.completion, **images
            )[0]
        trainer._compute_loss(trainer.model, batch | {"ref_per_token_logps": reference}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return dict(update_s=median_seconds(update, reps), prompt=inputs["input_ids"].shape[1], completion=size.completion)


@torch.no_grad()
def rollout(size: bench.Size, group: int, reps: int) -> dict[str, Any]:
    """Sampling one prompt's group, to the full length."""
    model, _ = make_model(size)
    inputs = group_inputs(size, group)
    length = dict(max_new_tokens=size.completion, min_new_tokens=size.completion)
    seconds = median_seconds(lambda: model.eval().generate(**inputs, do_sample=True, **length), reps)
    tokens_per_s = group * size.completion / seconds
    return dict(rollout_s=seconds, tokens_per_s=round(tokens_per_s, 1), prompt=inputs["input_ids"].shape[1])


def sft_step(size: bench.Size, _: int, reps: int) -> dict[str, Any]:
    """One SFT step on samples of bench.py's lengths, tokenised and collated before."""
    model, processor = make_model(size)
    texts, completions = bench.sft_lengths(size)
    rng = np.random.default_rng(0)
    side = size.config.vision.image_size
    images = [Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)) for _ in range(size.images)]

    def row(question: str, completion: str) -> dict[str, Any]:
        content = [{"type": "image"}] * size.images + [{"type": "text", "text": question}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": completion}]}]
        return {"prompt": [{"role": "user", "content": content}], "completion": answer, "images": images}

    def trainer(rows: list[dict], folder: str) -> SFTTrainer:
        arguments = SFTConfig(per_device_train_batch_size=len(rows), max_length=None, **settings(size, folder))
        return SFTTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=processor
        )

    def collate(rows: list[dict], folder: str) -> tuple[SFTTrainer, dict]:
        made = trainer(rows, folder)
        return made, made.data_collator([made.train_dataset[i] for i in range(len(rows))])

    with tempfile.TemporaryDirectory() as folder:
        _, probe = collate([row("q", "a")], folder)
        labels = int((probe["labels"] != -100).sum())
        prompt = int(probe["attention_mask"].sum()) - labels
        image_tokens = size.images * size.config.tokens_per_tile
        rows = [
            row("q" * (1 + image_tokens + text - prompt), "a" * (1 + completion - labels))
            for text, completion in zip(texts, completions, strict=True)
        ]
        made, batch = collate(rows, folder)
    batch = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    model.train()

    def step():
        made.compute_loss(model, dict(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    supervised = int((batch["labels"] != -100).sum())
    tokens = int(batch["attention_mask"].sum())
    return dict(step_s=median_seconds(step, reps), samples=len(rows), tokens=tokens, completion_tokens=supervised)


def images(size: bench.Size, _: int, reps: int) -> dict[str, Any]:
    """Five JPEGs through the image processor, decoding included."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    encoded = bench.jpegs()
    processor, times = image_processor(448), []
    for _ in range(5 * reps + 1):
        began = time.perf_counter()
        decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in encoded]
        middle = time.perf_counter()
        processor(decoded, return_tensors="pt")
        times.append((time.perf_counter() - began, time.perf_counter() - middle))
    seconds, tiling = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return dict(sample_s=seconds, tiling_s=tiling, images=len(encoded))


BENCHMARKS = {"grpo_update": grpo_update, "rollout": rollout, "sft_step": sft_step, "input": images}


def main(words: list[str]) -> None:
    """Runs one benchmark."""
    FLAGS(words)
    result = BENCHMARKS[FLAGS.benchmark](bench.SIZES[FLAGS.size], FLAGS.group, FLAGS.reps)
    head = dict(benchmark=FLAGS.benchmark, size=FLAGS.size, device=DEVICE, threads=torch.get_num_threads())
    print(json.dumps(head | result))


if __name__ == "__main__":
    main(sys.argv)
