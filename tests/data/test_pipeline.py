import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.pipeline import Batch, Example, Preprocessor, epoch_plan, planned_batches
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record
from aesthetic_jax.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from aesthetic_jax.errors import UserError

TOKENIZER = train_tokenizer(
    [completion_text("A: fine, passes.", ("A",)), question_text("physical_shadow", 4)], 320
)


def record(number: int, reasoning: str | None = "A: fine.") -> Record:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), (number * 10, 0, 0)).save(buffer, "PNG")
    return Record(
        str(number), "physical_shadow", (buffer.getvalue(),) * 3, frozenset("B"), 2, reasoning, None
    )


def make_preprocessor(**changes) -> Preprocessor:
    fields = dict(tile_size=28, tokens_per_tile=4, max_images=5, max_tiles=1)
    buckets = dict(prompt_buckets=(16, 400), completion_buckets=(48, 96))
    return Preprocessor(TOKENIZER, **(fields | buckets | changes))


def test_prompts_are_internvls_template():
    assert prompt_text("What?", [1, 2], 2) == (
        "<|im_start|>user\nImage-1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "Image-2: <img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_text("What?", [], 2, "Be brief.").startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )
    assert completion_text("Why.", ()) == "<think>Why.</think><answer>None</answer><|im_end|>"
    assert completion_text("Why.", (), final_newline=True).endswith("</answer><|im_end|>\n")
    assert (
        completion_text("Why.", ("C", "A")) == "<think>Why.</think><answer>A,C</answer><|im_end|>"
    )


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60))
def test_the_trained_tokenizer_encodes_any_text(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_tokenizer_comes_back_from_its_files(tmp_path):
    save_tokenizer(TOKENIZER, str(tmp_path))
    again = load_tokenizer(str(tmp_path))
    text = prompt_text(question_text("physical_shadow", 4), [1], 4)
    assert again.encode(text) == TOKENIZER.encode(text)
    assert (again.end, again.pad, again.image) == (TOKENIZER.end, TOKENIZER.pad, TOKENIZER.image)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_an_example_has_what_the_model_takes():
    example = make_preprocessor()(record(3), 7, True)
    assert isinstance(example, Example)
    assert Batch._fields == (*Example._fields, "features")
    assert example.tiles.shape == (5, 28, 28, 3)
    assert (example.tiles[:3] == example.tiles[0]).all()
    assert not example.tiles[3:].any()
    assert (example.prompt_ids[example.prompt_mask] == TOKENIZER.image).sum() == 3 * 4
    assert example.prompt_mask.sum() == np.flatnonzero(example.prompt_mask)[-1] + 1
    text = TOKENIZER.decode(example.completion_ids[0])
    assert text == "<think>A: fine.</think><answer>B</answer>"
    assert example.completion_ids[0][example.completion_mask[0]][-1] == TOKENIZER.end
    assert (example.index, example.answer, example.num_options) == (7, 0b10, 2)


@pytest.mark.parametrize(
    ("changes", "reasoning", "words"),
    [
        ({"prompt_buckets": (16,)}, "A.", "raise data.prompt_buckets"),
        ({"completion_buckets": (4,)}, "A.", "raise data.completion_buckets"),
        ({"max_images": 2}, "A.", "raise data.max_images"),
        ({}, None, "no reasoning"),
    ],
)
def test_what_does_not_fit_is_named(changes, reasoning, words):
    with pytest.raises(UserError, match=f"sample 3: .*{words}"):
        make_preprocessor(**changes)(record(3, reasoning), 0, True)


def test_batches_follow_the_plan_from_any_start():
    records = [record(number) for number in range(6)]
    plan = np.array([5, 1, 1, 0, 4, 2, 3], np.int32)
    batches = [
        list(
            planned_batches(
                records, plan, make_preprocessor(), 2, with_completion=True, start=start
            )
        )
        for start in (0, 2)
    ]
    assert all(isinstance(batch, Batch) and batch.features is None for batch in batches[0])
    assert [batch.index.tolist() for batch in batches[0]] == [[5, 1], [1, 0], [4, 2]]
    assert [batch.index.tolist() for batch in batches[1]] == [[4, 2]]
    assert batches[0][0].completion_ids.shape == (2, 1, 48)  # the smallest bucket that holds them


def test_descriptions_make_batches_of_one_image_a_prompt():
    told = dict(answer=frozenset(), num_options=0, question="Describe Image-1.")
    records = [
        dataclasses.replace(x, images=x.images[:1], **told) for x in (record(1), record(2, "Red."))
    ]
    preprocessor = make_preprocessor(max_images=1)
    plan = np.arange(2, dtype=np.int32)
    (batch,) = planned_batches(records, plan, preprocessor, 2, with_completion=True)
    assert batch.tiles.shape == (2, 1, 28, 28, 3)
    assert batch.num_options.tolist() == batch.answer.tolist() == [0, 0]
    prompts = [
        TOKENIZER.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=False)
        for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ]
    assert prompts == [prompt_text("Describe Image-1.", [1], 4)] * 2
    assert [TOKENIZER.decode(ids[0]) for ids in batch.completion_ids] == [
        "<think>A: fine.</think><answer>None</answer>",
        "<think>Red.</think><answer>None</answer>",
    ]
    with pytest.raises(UserError, match=r"raise data\.max_images, which is 1"):
        preprocessor(record(3), 0, True)


@given(
    seed=st.integers(0, 99),
    size=st.integers(1, 40),
    length=st.integers(1, 60),
    rounds=st.integers(1, 5),
)
def test_every_eligible_sample_comes_once_before_any_comes_twice(seed, size, length, rounds):
    eligible = np.arange(100, 100 + size)
    order = np.concatenate([epoch_plan(seed, number, eligible, length) for number in range(rounds)])
    assert len(order) == rounds * length
    for first in range(0, len(order) - size + 1, size):
        assert set(order[first : first + size]) == set(eligible)
