"""transformers' InternVL at a benchmark's size, and its inputs."""

import torch
from paritylib.torch_checkpoint import CHAT_TEMPLATE, Processor, make_tokenizer
from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration

from benchlib.inputs import prompts
from benchlib.sizes import Size

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image_processor(side: int) -> GotOcr2ImageProcessorPil:
    """Makes one tile of `side` x `side` pixels of an image."""
    return GotOcr2ImageProcessorPil(
        size=dict(height=side, width=side),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        max_patches=1,
    )


def make_model(size: Size) -> tuple[InternVLForConditionalGeneration, Processor]:
    """The model with random weights, and a byte-level processor."""
    vision, text = size.config.vision, size.config.text
    tokenizer = make_tokenizer(text.vocab_size)
    vision_config = dict(
        hidden_size=vision.width,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.heads,
        intermediate_size=vision.mlp_width,
        image_size=[vision.image_size] * 2,
        patch_size=[vision.patch_size] * 2,
        attention_bias=True,
    )
    text_config = dict(
        model_type="qwen2",
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        num_key_value_heads=text.kv_heads,
        intermediate_size=text.mlp_width,
        vocab_size=text.vocab_size,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=text.rope_theta),
    )
    config = InternVLConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=size.config.tokens_per_tile,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config).to(DEVICE, getattr(torch, size.config.dtype))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = Processor(
        image_processor=image_processor(vision.image_size),
        tokenizer=tokenizer,
        image_seq_length=size.config.tokens_per_tile,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


def group_inputs(size: Size, group: int) -> dict[str, torch.Tensor]:
    """bench.py's prompt and tiles, repeated G times, as TRL and `generate` take them."""
    prompt = prompts(size)
    ids = torch.tensor(prompt["prompt_ids"]).long()
    # make_tokenizer gives <IMG_CONTEXT> the last id.
    ids[ids == size.config.image_token] = size.config.text.vocab_size - 1
    side = size.config.vision.image_size
    pixels = torch.randn(size.images, 3, side, side, dtype=getattr(torch, size.config.dtype))
    return dict(
        input_ids=ids.repeat(group, 1).to(DEVICE),
        attention_mask=torch.ones(group, ids.shape[1], dtype=torch.long, device=DEVICE),
        pixel_values=pixels.repeat(group, 1, 1, 1).to(DEVICE),
    )
