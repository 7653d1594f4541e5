import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aesthetic_jax.data.answers import (
    LETTERS,
    answer_mask,
    format_answer,
    mask_letters,
    option_letters,
    option_passes,
)

answers = st.sets(st.sampled_from(LETTERS))


@given(answers)
def test_masks_and_letters_are_inverse(answer):
    assert mask_letters(answer_mask(answer)) == answer
    assert answer_mask([*answer, *answer]) == answer_mask(answer) < 1 << len(LETTERS)


@given(st.integers(0, 255))
def test_every_mask_is_an_answer(mask):
    assert answer_mask(mask_letters(mask)) == mask


@given(st.permutations(LETTERS), st.integers(0, 8))
def test_answers_are_written_sorted(letters, number):
    text = format_answer(letters[:number])
    assert text == (",".join(sorted(letters[:number])) if number else "None")


@given(st.lists(answers, min_size=1, max_size=9))
def test_options_of_many_masks_are_decoded_at_once(rows):
    masks = np.array([answer_mask(row) for row in rows], np.uint8)
    for option, letter in enumerate(LETTERS):
        assert option_passes(masks, option).tolist() == [letter in row for row in rows]


def test_option_a_is_the_lowest_bit():
    assert option_letters(4) == "ABCD"
    assert (answer_mask("AC"), answer_mask("")) == (0b101, 0)
