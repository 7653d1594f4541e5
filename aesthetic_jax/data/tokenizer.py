"""InternVL's byte-level BPE tokenizer: loading, saving, and training a small one."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any, SupportsInt

from etils import epath
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from aesthetic_jax.errors import UserError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT)

# The files of a published tokenizer and processor, which runs and exports copy.
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "vocab.json merges.txt chat_template.jinja chat_template.json "
    "preprocessor_config.json processor_config.json generation_config.json"
).split()


@dataclasses.dataclass(frozen=True)
class ChatTokenizer:
    """A tokenizer that has the chat and image tokens of InternVL.

    Attributes:
        tokenizer: the `tokenizers.Tokenizer` itself.
        pad: id of <|endoftext|>, which pads rows.
        end: id of <|im_end|>, which ends a completion.
        image: id of <IMG_CONTEXT>, which an image feature replaces.
    """

    tokenizer: Any
    pad: int
    end: int
    image: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are recognised, none are added."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Text of a completion's ids, up to its first end-of-turn token."""
        kept = []
        for token in ids:
            if int(token) in (self.end, self.pad):
                break
            kept.append(int(token))
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)


def wrap_tokenizer(tokenizer: Tokenizer, name: str) -> ChatTokenizer:
    """Looks up the ids of the special tokens.

    Args:
        tokenizer: any `tokenizers.Tokenizer`.
        name: what errors call it.

    Raises:
        UserError: a special token is missing; its plain text would then replace images.
    """
    ids = {
        token: index
        for token in SPECIAL_TOKENS
        if (index := tokenizer.token_to_id(token)) is not None
    }
    if missing := [token for token in SPECIAL_TOKENS if token not in ids]:
        raise UserError(
            f"{name}: the tokenizer lacks {' '.join(missing)}; "
            "use the tokenizer of an InternVL checkpoint"
        )
    return ChatTokenizer(
        tokenizer, pad=ids[END_OF_TEXT], end=ids[TURN_END], image=ids[IMAGE_CONTEXT]
    )


def load_tokenizer(directory: str) -> ChatTokenizer:
    """Reads tokenizer.json, or the vocab.json and merges.txt of the original checkpoints.

    Raises:
        UserError: there is no tokenizer, it is damaged, or it lacks a special token.
    """
    folder = epath.Path(directory)
    file = folder / "tokenizer.json"
    if file.exists():
        try:
            return wrap_tokenizer(Tokenizer.from_str(file.read_text()), str(file))
        except UserError:
            raise
        except Exception as error:  # tokenizers raises bare Exceptions
            reason = " ".join(str(error).split())[:100]
            raise UserError(
                f"{file}: is not a tokenizer ({reason}); copy the checkpoint's file again"
            ) from None
    if (folder / "vocab.json").exists():
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return wrap_tokenizer(slow.backend_tokenizer, str(folder / "vocab.json"))
    raise UserError(
        f"{folder}: has no tokenizer.json and no vocab.json; copy the checkpoint's tokenizer files"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> ChatTokenizer:
    """Trains a small byte-level BPE, for models trained from scratch; it can encode any text.

    Unlike Qwen2's, it may merge whole phrases up to their punctuation: a small model's speed
    depends on the number of tokens.

    Args:
        texts: to train on.
        vocab_size: number of ids, special tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^,.:;?!<>\n]*[,.:;?!<>\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap_tokenizer(tokenizer, "the trained tokenizer")


def save_tokenizer(tokenizer: ChatTokenizer, directory: str) -> None:
    """Writes files from which transformers' AutoTokenizer opens the same tokenizer."""
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.tokenizer.to_str())
    extra = {
        "start_image_token": IMAGE_START,
        "end_image_token": IMAGE_END,
        "context_image_token": IMAGE_CONTEXT,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "extra_special_tokens": extra,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def copy_tokenizer(source: str, target: str) -> None:
    """Copies those of TOKENIZER_FILES that exist in one directory to another."""
    folder = epath.Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (file := epath.Path(source) / name).exists():
            file.copy(folder / name, overwrite=True)
