"""PyTorch's model and inputs: checkpoint, processor, and both published prompt templates."""

import torch
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLForConditionalGeneration,
)

from paritylib.cases import Sample
from paritylib.torch_checkpoint import CHAT_TEMPLATE, EXTRA_TOKENS, Processor
from paritylib.work import Work

# The system prompt of OpenGVLab's conversation "internvl2_5".
SYSTEM = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


def load_model(work: Work, dtype: torch.dtype = torch.float32) -> InternVLForConditionalGeneration:
    """The checkpoint as transformers opens it."""
    return InternVLForConditionalGeneration.from_pretrained(work.model, dtype=dtype).eval()


def load_processor(work: Work) -> Processor:
    """Tokenizer, image processor and chat template of the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.padding_side = "left"
    for name, token in EXTRA_TOKENS.items():
        if getattr(tokenizer, name, None) is None:  # some published tokenizers lack some of them
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.chat_template = template
    return Processor(
        image_processor=make_image_processor(work.tile_size, work.amount.max_tiles),
        tokenizer=tokenizer,
        image_seq_length=work.config["image_seq_length"],
        chat_template=template,
    )


def make_image_processor(tile_size: int, max_tiles: int) -> GotOcr2ImageProcessorPil:
    """Cuts an image into up to `max_tiles` tiles of tile_size x tile_size pixels."""
    return GotOcr2ImageProcessorPil(
        size=dict(height=tile_size, width=tile_size),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        max_patches=max_tiles,
        crop_to_patches=True,
    )


def user_turn(sample: Sample) -> list[dict]:
    """The user's message; several images are numbered as InternVL numbers them."""
    content = []
    for number in range(1, len(sample.images) + 1):
        content += [{"type": "text", "text": f"Image-{number}: "}, {"type": "image"}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}]


def encode(processor: Processor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, S], left-padded, and pixel_values [tiles, 3, X, X]."""
    texts = [
        processor.apply_chat_template(user_turn(sample), add_generation_prompt=True, tokenize=False)
        for sample in samples
    ]
    images = [list(sample.images) for sample in samples]
    return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))


def count_tiles(processor: Processor, sample: Sample) -> list[int]:
    """Tiles of each image of a sample, thumbnails included."""
    return list(processor.image_processor(list(sample.images), return_tensors="np").num_patches)


def original_prompt(sample: Sample, tiles: list[int], tokens_per_tile: int) -> str:
    """The prompt that OpenGVLab's `chat` builds for several images.

    An MPT-style conversation in which each `<image>` is replaced by its image tokens.
    """
    images = "".join(f"Image-{number}: <image>\n" for number in range(1, len(tiles) + 1))
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{images}{sample.question}<|im_end|>\n<|im_start|>assistant\n"
    )
    for count in tiles:
        tokens = "<IMG_CONTEXT>" * (tokens_per_tile * count)
        text = text.replace("<image>", f"<img>{tokens}</img>", 1)
    return text
