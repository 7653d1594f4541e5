"""PyTorch's inference sections: transformers' forward pass, preprocessing, prompts, `generate`."""

import logging
import warnings

import numpy as np
import torch
import transformers
from transformers import InternVLForConditionalGeneration

from paritylib import cases
from paritylib.torch_checkpoint import make_checkpoint
from paritylib.torch_inputs import (
    count_tiles,
    encode,
    load_model,
    load_processor,
    make_image_processor,
    original_prompt,
)
from paritylib.work import Work


def images(work: Work) -> dict:
    """Tiles as bytes, and the normalised pixels of the model's own batch."""
    raw = make_image_processor(cases.TILE_SIZE, cases.MAX_TILES_PREPROCESSED)(
        cases.preprocessed_images(), do_rescale=False, do_normalize=False, return_tensors="np"
    )
    batch = encode(load_processor(work), cases.samples(work, work.amount.prompts, seed=1))
    pixels = batch["pixel_values"].numpy().transpose(0, 2, 3, 1)
    return {"tiles": raw.pixel_values.transpose(0, 2, 3, 1), "pixels": pixels}


def prompts(work: Work) -> dict:
    """Texts and ids of both published templates."""
    processor = load_processor(work)
    samples = cases.samples(work, work.amount.greedy_prompts, seed=2)
    original = [
        original_prompt(sample, count_tiles(processor, sample), processor.image_seq_length)
        for sample in samples
    ]
    ids = [encode(processor, [sample])["input_ids"][0].numpy() for sample in samples]
    original_ids = [
        processor.tokenizer(text, add_special_tokens=False).input_ids for text in original
    ]
    return {
        "hf_text": cases.text_array([processor.tokenizer.decode(row) for row in ids]),
        "hf_ids": np.concatenate(ids),
        "original_text": cases.text_array(original),
        "original_ids": np.concatenate(original_ids),
    }


@torch.no_grad()
def forward(work: Work) -> dict:
    """Vision features, projector output and logits."""
    model = load_model(work)
    batch = encode(load_processor(work), cases.samples(work, work.amount.prompts, seed=1))
    return _forward(model, batch)


def _forward(model: InternVLForConditionalGeneration, batch: dict) -> dict:
    features = model.model.vision_tower(pixel_values=batch["pixel_values"]).last_hidden_state[:, 1:]
    projected = model.model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
    logits = model(**batch).logits.flatten(0, 1)
    kept = torch.tensor(cases.kept_positions(batch["attention_mask"].numpy(), logits.shape[-1]))
    return {
        "vision": features.numpy(),
        "projected": projected.numpy(),
        "logits": logits[kept].numpy(),
    }


@torch.no_grad()
def logprobs(work: Work, dtype: torch.dtype = torch.float32) -> dict:
    """Log-probability and entropy of each completion token at the sampling temperature.

    Prompts are repeated G times.
    """
    model, processor = load_model(work, dtype), load_processor(work)
    group, count = work.amount.group, work.amount.prompts
    samples = cases.samples(work, count, seed=1)
    batch = encode(processor, [sample for sample in samples for _ in range(group)])
    ids, mask = (
        torch.tensor(x)
        for x in cases.completions(count * group, processor.tokenizer.eos_token_id, seed=1)
    )
    hidden = model.model(
        input_ids=torch.cat([batch["input_ids"], ids], 1),
        attention_mask=torch.cat([batch["attention_mask"], mask.long()], 1),
        pixel_values=batch["pixel_values"].to(dtype),
    ).last_hidden_state[:, -ids.shape[1] - 1 : -1]
    logits = hidden.float() @ model.lm_head.weight.float().T
    distribution = (logits / cases.TEMPERATURE).log_softmax(-1)
    chosen = distribution.gather(-1, ids[..., None])[..., 0]
    entropies = -(distribution.exp() * distribution).sum(-1)
    return {"logprobs": chosen[mask].numpy(), "entropies": entropies[mask].numpy()}


def bfloat16(work: Work) -> dict:
    """`logprobs` of the model in bfloat16 with its head in float32."""
    return logprobs(work, torch.bfloat16)


@torch.no_grad()
def greedy(work: Work) -> dict:
    """Token ids [prompts, tokens] that `generate` picks greedily; -1 after the end token."""
    model, processor = load_model(work), load_processor(work)
    end, length = processor.tokenizer.eos_token_id, work.amount.greedy_tokens
    samples = cases.samples(work, work.amount.greedy_prompts, seed=2)
    blocks = []
    for start in range(0, len(samples), 10):
        batch = encode(processor, samples[start : start + 10])
        sequences = model.generate(
            **batch,
            max_new_tokens=length,
            do_sample=False,
            suppress_tokens=[processor.image_token_id],
            eos_token_id=end,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        ids = sequences[:, batch["input_ids"].shape[1] :].numpy()
        blocks.append(np.pad(ids, ((0, 0), (0, length - ids.shape[1])), constant_values=-1))
    ids = np.concatenate(blocks)
    after_end = np.cumsum(ids == end, axis=1) - (ids == end) > 0
    return {"ids": np.where(after_end, -1, ids)}


def reopen(work: Work) -> dict:
    """Logits of our export in transformers, and the number of keys it missed or didn't know."""
    model, info = InternVLForConditionalGeneration.from_pretrained(
        work.folder / "export", dtype=torch.float32, output_loading_info=True
    )
    batch = encode(load_processor(work), cases.samples(work, work.amount.prompts, seed=1))
    with torch.no_grad():
        logits = _forward(model.eval(), batch)["logits"]
    wrong_keys = sum(len(keys) for keys in info.values())
    return {"logits": logits, "wrong_keys": np.array([float(wrong_keys)])}


SECTIONS = {
    section.__name__: section for section in (images, prompts, forward, logprobs, bfloat16, greedy)
}


def prepare(work: Work) -> None:
    """Silences warnings, sets the threads, and writes the random checkpoint if there is none."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    if work.size == "tiny":
        torch.set_num_threads(1)  # more threads would mostly wait for one another
    if not (work.model / "config.json").exists():
        make_checkpoint(work)
