"""Our model and inputs: the checkpoint, and batches as the package tokenises and tiles them."""

import jax
import numpy as np
from flax import nnx

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data import images, prompts
from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from paritylib.cases import Sample
from paritylib.work import Work


def load_model(work: Work, dtype: str = "float32") -> tuple[nnx.GraphDef, dict]:
    """Graph and parameters, apart: a compiled program that holds parameters copies them."""
    graph, state = nnx.split(huggingface.load_pretrained(str(work.model), dtype))
    return graph, nnx.to_pure_dict(state)


def open_tokenizer(work: Work) -> ChatTokenizer:
    """The checkpoint's tokenizer."""
    return load_tokenizer(str(work.model))


def encode(
    work: Work, samples: list[Sample], system: str = ""
) -> tuple[list[np.ndarray], list[str]]:
    """Tiles [N, X, X, 3] uint8 and prompt text of each sample."""
    tokens_per_tile = huggingface.read_config(str(work.model)).tokens_per_tile
    tiles, texts = [], []
    for sample in samples:
        cut = [images.tile_image(x, work.tile_size, work.amount.max_tiles) for x in sample.images]
        counts = [len(x) for x in cut]
        texts.append(prompts.prompt_text(sample.question, counts, tokens_per_tile, system))
        tiles.append(np.concatenate(cut))
    return tiles, texts


def left_padded(rows: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, each [B, P]."""
    length = max(map(len, rows))
    ids = np.array([[pad] * (length - len(row)) + row for row in rows], np.int32)
    return ids, np.arange(length) >= length - np.array([[len(row)] for row in rows])


def make_batch(work: Work, samples: list[Sample], completions: bool = False) -> Batch:
    """A batch as the pipeline makes it, but left-padded.

    Completions, where asked for, end with the newline of transformers' chat template.
    """
    tokenizer = open_tokenizer(work)
    tiles, texts = encode(work, samples)
    most = max(map(len, tiles))
    tiles = np.stack([np.pad(x, ((0, most - len(x)), (0, 0), (0, 0), (0, 0))) for x in tiles])
    prompt_ids, prompt_mask = left_padded([tokenizer.encode(x) for x in texts], tokenizer.pad)
    rows = [
        tokenizer.encode(f"{sample.completion}<|im_end|>\n") if completions else []
        for sample in samples
    ]
    length = max(map(len, rows))
    completion_ids = np.array([row + [tokenizer.pad] * (length - len(row)) for row in rows])
    completion_mask = np.arange(length) < np.array([[len(row)] for row in rows])
    zeros = np.zeros(len(samples), np.int32)
    return Batch(
        tiles=tiles,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        completion_ids=completion_ids.astype(np.int32)[:, None],
        completion_mask=completion_mask[:, None],
        index=zeros,
        answer=zeros,
        num_options=zeros,
        dimension=zeros,
    )


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Batches of `size` prompts, all of one shape, so that one program serves them all."""
    starts = range(0, len(batch.index), size)
    return [jax.tree.map(lambda x, start=start: x[start : start + size], batch) for start in starts]
