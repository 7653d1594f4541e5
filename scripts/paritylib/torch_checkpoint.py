"""A random InternVL checkpoint with a byte-level tokenizer, as transformers writes it."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor

from paritylib.work import Work

# The chat template that transformers' -hf checkpoints are published with.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
EXTRA_TOKENS = dict(
    start_image_token="<img>",
    end_image_token="</img>",
    context_image_token="<IMG_CONTEXT>",
    video_token="<video>",
)

_TINY_VISION = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=[28, 28],
    patch_size=[7, 7],
)
_TINY_TEXT = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=64,
)
_2B_VISION = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    image_size=[448, 448],
    patch_size=[14, 14],
)
_2B_TEXT = dict(
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
)


class Processor(InternVLProcessor):
    """InternVLProcessor without a video processor, which would need torchvision."""

    def check_argument_for_proper_class(self, name, arg):
        """Accepts any class."""
        return type(arg)


def make_checkpoint(work: Work) -> None:
    """Writes a random checkpoint to work.model: float32 at tiny, bfloat16 at 2b, as published."""
    tiny = work.size == "tiny"
    vocab_size = 288 if tiny else 151674
    tokenizer = make_tokenizer(vocab_size)
    text_config = dict(
        model_type="qwen2",
        vocab_size=vocab_size,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e6),
    )
    config = InternVLConfig(
        vision_config=dict(_TINY_VISION if tiny else _2B_VISION, attention_bias=True),
        text_config=text_config | (_TINY_TEXT if tiny else _2B_TEXT),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4 if tiny else 256,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    # to_empty leaves the rotary buffers unset; only the parameters of this model are used.
    model = model.to(torch.float32 if tiny else torch.bfloat16).to_empty(device="cpu")
    _randomise(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(work.model)
    tokenizer.save_pretrained(work.model)


def _randomise(model: InternVLForConditionalGeneration) -> None:
    """Fills parameters with noise at which every layer matters: logits of deviation 1.3."""
    generator = torch.Generator().manual_seed(0)
    layers = {
        "vision_tower": model.config.vision_config.num_hidden_layers,
        "language_model": model.config.text_config.num_hidden_layers,
    }
    branch_ends = ("projection_layer", "fc2", "o_proj", "down_proj")
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif "lambda" in name:
            noise = 0.5 + 0.2 * noise
        elif name == "lm_head.weight":
            noise *= 1.3 * noise.shape[1] ** -0.5
        elif "embed_tokens" in name:
            noise *= 0.1
        elif noise.ndim == 1:
            noise *= 0.2
        else:
            noise *= noise[0].numel() ** -0.5
            if any(end in name for end in branch_ends):
                tower = "vision_tower" if "vision_tower" in name else "language_model"
                noise *= (2 * layers[tower]) ** -0.5
        parameter.data.copy_(noise)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, unused tokens and, as the last of `vocab_size`, the special tokens.

    Its `<video>` has an id beyond the embedding's rows, as in the published checkpoints.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    vocabulary = {
        token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    for index in range(len(vocabulary), vocab_size - len(special)):
        vocabulary[f"<unused{index}>"] = index
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens=EXTRA_TOKENS,
    )
