"""The PyTorch side of parity.py: transformers' InternVL, its image processor, its chat template and `generate`."""

import logging
import warnings

import numpy as np
import parity_cases as cases
import torch
import transformers
from parity_cases import Sample, Work
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.internvl.processing_internvl import InternVLProcessor

# The template that transformers' -hf checkpoints are published with.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
# OpenGVLab's conversation "internvl2_5".
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
EXTRA_TOKENS = dict(
    start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
)


class Processor(InternVLProcessor):
    """InternVLProcessor without a video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, name, arg):
        """Takes any class."""
        return type(arg)


# --- The random model ---


def make_model(work: Work) -> None:
    """Writes a random checkpoint with a byte-level tokenizer to work.model: float32, or bfloat16 as the 2B is published."""
    small = work.size == "tiny"
    vocab = 288 if small else 151674
    tokenizer = make_tokenizer(vocab)
    vision = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=[28, 28], patch_size=[7, 7],
    ) if small else dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        image_size=[448, 448], patch_size=[14, 14],
    )  # fmt: skip
    text = dict(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=64,
    ) if small else dict(
        hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, intermediate_size=8960,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=dict(vision, attention_bias=True),
        text_config=dict(
            text, model_type="qwen2", vocab_size=vocab, max_position_embeddings=32768, tie_word_embeddings=False,
            rope_parameters=dict(rope_type="default", rope_theta=1e6),
        ),
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4 if small else 256,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    model = model.to_empty(device="cpu") if small else model.to(torch.bfloat16).to_empty(device="cpu")
    # Rotary frequencies are buffers that no file holds; only the parameters of this model are used.
    _randomise(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(work.model)
    tokenizer.save_pretrained(work.model)


def _randomise(model: InternVLForConditionalGeneration) -> None:
    """Noise of a scale that keeps every part of the network in play, however deep: logits of standard deviation 1.3."""
    generator = torch.Generator().manual_seed(0)
    layers = {"vision_tower": model.config.vision_config, "language_model": model.config.text_config}
    layers = {name: config.num_hidden_layers for name, config in layers.items()}
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
            if any(out in name for out in ("projection_layer", "fc2", "o_proj", "down_proj")):  # ends of branches
                noise *= (2 * layers["vision_tower" if "vision_tower" in name else "language_model"]) ** -0.5
        parameter.data.copy_(noise)


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Bytes, tokens that no text has, and at the end the special ones, of which `<video>` has no row in the embedding."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for index in range(len(vocabulary), vocab_size - len(special)):
        vocabulary[f"<unused{index}>"] = index
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        extra_special_tokens=EXTRA_TOKENS,
    )  # fmt: skip


# --- Models, prompts and batches ---


def load_model(work: Work, dtype: torch.dtype = torch.float32) -> InternVLForConditionalGeneration:
    """The checkpoint as transformers opens it."""
    return InternVLForConditionalGeneration.from_pretrained(work.model, dtype=dtype).eval()


def load_processor(work: Work) -> Processor:
    """Tokenizer, image processor and chat template of the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    tokenizer.padding_side = "left"
    for name, token in EXTRA_TOKENS.items():
        if getattr(tokenizer, name, None) is None:  # tokenizers of older conversions name only some
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    template = tokenizer.chat_template or CHAT_TEMPLATE
    tokenizer.chat_template = template
    return Processor(
        image_processor=_image_processor(work.tile_size, work.amount.max_tiles),
        tokenizer=tokenizer,
        image_seq_length=work.config["image_seq_length"],
        chat_template=template,
    )


def _image_processor(tile_size: int, max_tiles: int) -> GotOcr2ImageProcessorPil:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    size = dict(height=tile_size, width=tile_size)
    return GotOcr2ImageProcessorPil(
        size=size, image_mean=mean, image_std=std, max_patches=max_tiles, crop_to_patches=True
    )


def message(sample: Sample) -> list[dict]:
    """The user's turn, images named as InternVL names several."""
    content = []
    for number in range(1, len(sample.images) + 1):
        content += [{"type": "text", "text": f"Image-{number}: "}, {"type": "image"}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": sample.question}]}]


def encode(processor: Processor, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask [B, S], left-padded, and pixel_values [tiles, 3, X, X]."""
    texts = [
        processor.apply_chat_template(message(sample), add_generation_prompt=True, tokenize=False) for sample in samples
    ]
    images = [list(sample.images) for sample in samples]
    return dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))


def _tiles(processor: Processor, sample: Sample) -> list[int]:
    return list(processor.image_processor(list(sample.images), return_tensors="np").num_patches)


def original_prompt(sample: Sample, tiles: list[int], tokens_per_tile: int) -> str:
    """What OpenGVLab's `chat` makes of a question on several images: an MPT-style conversation, `<image>` replaced."""
    query = "".join(f"Image-{number}: <image>\n" for number in range(1, len(tiles) + 1)) + sample.question
    text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n"
    for count in tiles:
        text = text.replace("<image>", "<img>" + "<IMG_CONTEXT>" * (tokens_per_tile * count) + "</img>", 1)
    return text


# --- Inference sections ---


def images(work: Work) -> dict:
    """Tiles as bytes, and the normalised pixels of the model's own batch."""
    raw = _image_processor(cases.TILE_SIZE, cases.MAX_TILES_PREPROCESSED)(
        cases.preprocessed_images(), do_rescale=False, do_normalize=False, return_tensors="np"
    )
    batch = encode(load_processor(work), cases.samples(work, work.amount.prompts, seed=1))
    pixels = batch["pixel_values"].numpy().transpose(0, 2, 3, 1)
    return {"tiles": raw.pixel_values.transpose(0, 2, 3, 1), "pixels": pixels}


def prompts(work: Work) -> dict:
    """Texts and ids of both published templates."""
    processor = load_processor(work)
    drawn = cases.samples(work, work.amount.greedy_prompts, seed=2)
    original = [original_prompt(sample, _tiles(processor, sample), processor.image_seq_length) for sample in drawn]
    ids = [encode(processor, [sample])["input_ids"][0].numpy() for sample in drawn]
    original_ids = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in original]
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
    return {"vision": features.numpy(), "projected": projected.numpy(), "logits": logits[kept].numpy()}


@torch.no_grad()
def logprobs(work: Work, dtype: torch.dtype = torch.float32) -> dict:
    """Log-probability and entropy of every completion token at the sampling temperature, prompts repeated G times."""
    model, processor = load_model(work, dtype), load_processor(work)
    group, prompts = work.amount.group, work.amount.prompts
    drawn = cases.samples(work, prompts, seed=1)
    batch = encode(processor, [sample for sample in drawn for _ in range(group)])
    ids, mask = (torch.tensor(x) for x in cases.completions(prompts * group, processor.tokenizer.eos_token_id, seed=1))
    hidden = model.model(
        input_ids=torch.cat([batch["input_ids"], ids], 1),
        attention_mask=torch.cat([batch["attention_mask"], mask.long()], 1),
        pixel_values=batch["pixel_values"].to(dtype),
    ).last_hidden_state[:, -ids.shape[1] - 1 : -1]
    distribution = (hidden.float() @ model.lm_head.weight.float().T / cases.TEMPERATURE).log_softmax(-1)
    chosen = distribution.gather(-1, ids[..., None])[..., 0]
    entropies = -(distribution.exp() * distribution).sum(-1)
    return {"logprobs": chosen[mask].numpy(), "entropies": entropies[mask].numpy()}


def bfloat16(work: Work) -> dict:
    """`logprobs` of the model in bfloat16, its head in float32."""
    return logprobs(work, torch.bfloat16)


@torch.no_grad()
def greedy(work: Work) -> dict:
    """Tokens that `generate` picks without sampling; -1 behind the end token."""
    model, processor = load_model(work), load_processor(work)
    end, tokens = processor.tokenizer.eos_token_id, work.amount.greedy_tokens
    drawn = cases.samples(work, work.amount.greedy_prompts, seed=2)
    picked = []
    for start in range(0, len(drawn), 10):
        batch = encode(processor, drawn[start : start + 10])
        whole = model.generate(
            **batch, max_new_tokens=tokens, do_sample=False, suppress_tokens=[processor.image_token_id],
            eos_token_id=end, pad_token_id=processor.tokenizer.pad_token_id,
        )  # fmt: skip
        ids = whole[:, batch["input_ids"].shape[1] :].numpy()
        picked.append(np.pad(ids, ((0, 0), (0, tokens - ids.shape[1])), constant_values=-1))
    ids = np.concatenate(picked)
    behind = np.cumsum(ids == end, axis=1) - (ids == end) > 0
    return {"ids": np.where(behind, -1, ids)}


def reopen(work: Work) -> dict:
    """Logits of our export, opened by transformers, and the number of keys that it missed or did not know."""
    model, info = InternVLForConditionalGeneration.from_pretrained(
        work.folder / "export", dtype=torch.float32, output_loading_info=True
    )
    batch = encode(load_processor(work), cases.samples(work, work.amount.prompts, seed=1))
    with torch.no_grad():
        logits = _forward(model.eval(), batch)["logits"]
    return {"logits": logits, "wrong_keys": np.array([float(sum(len(found) for found in info.values()))])}


SECTIONS = {section.__name__: section for section in (images, prompts, forward, logprobs, bfloat16, greedy)}


def prepare(work: Work) -> None:
    """Quiet, and as many threads as the size can use; makes the random model if there is none yet."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    if work.size == "tiny":
        torch.set_num_threads(1)  # threads wait for one another longer than such a model computes
    if not (work.model / "config.json").exists():
        make_model(work)
