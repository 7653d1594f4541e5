"""Chains of thought and scenes.jsonl: what is written is read back, and nothing else."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.prompts import completion_text
from aesthetic_jax.data.scenes import facts_file
from aesthetic_jax.data.scenes.chains import read_chain
from aesthetic_jax.data.scenes.facts import rendered_image, scene_line
from aesthetic_jax.data.scenes.facts_file import ImageFacts, copy_scenes, find_scenes, read_scenes
from aesthetic_jax.data.scenes.flaws import BREAKS, PARTS, random_flaw
from aesthetic_jax.data.scenes.products import cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_reasoning
from aesthetic_jax.errors import UserError

SEEDS = st.integers(0, 2**32)


def draw_sample(seed, thorough, asked=DIMENSIONS[0], product=None):
    """A random sample's chain of thought, and its line in scenes.jsonl."""
    rng = np.random.default_rng(seed)
    product = product or random_product(rng)
    images = []
    for _ in range(5):
        parts = PARTS.values() if images else ()
        flaws = [random_flaw(rng, x, product, (0.3, 1.0)) for x in parts if rng.random() < 0.6]
        images.append(rendered_image(product, int(rng.choice([-1, 1])), tuple(flaws)))
    return write_reasoning(rng, asked, images, thorough), scene_line("s", images)


def write_rows(folder, *rows):
    path = folder / "scenes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parse(row):
    return facts_file._parse_line(json.dumps(row).encode())[1]


@settings(deadline=None, max_examples=300)
@given(SEEDS, st.sampled_from(DIMENSIONS))
def test_a_thorough_chain_is_read_back_whole(seed, asked):
    chain, row = draw_sample(seed, True, asked)
    assert read_chain(chain) == parse(row)
    assert read_chain(completion_text(chain, "A")) == parse(row)


def is_told(flaw, asked):
    """Whether a short chain states a flaw; of a missing cap it says only that a part is lost."""
    hidden = asked == "extension_rationality" and flaw == "cap_missing"
    return asked in BREAKS[flaw] and not hidden


@settings(deadline=None, max_examples=100)
@given(SEEDS, st.sampled_from(DIMENSIONS))
def test_a_short_chain_states_the_asked_dimension(seed, asked):
    chain, row = draw_sample(seed, False, asked)
    truth, stated = parse(row), read_chain(chain)
    assert stated.keys() - {"original"} == set("ABCD")
    values = ("kind", "body", "label", "cap")
    told = {"appearance_deformation": values, "physical_shadow": ("light",)}
    for name, facts in stated.items():
        assert facts.flaws == {flaw for flaw in truth[name].flaws if is_told(flaw, asked)}
        for field in (*values, "light"):
            expected = getattr(truth[name], field) if field in told.get(asked, ()) else None
            assert getattr(facts, field) == expected


@settings(deadline=None, max_examples=100)
@given(SEEDS)
def test_recolourings_of_a_cut_out_are_read(seed):
    product = cutout_product(Image.new("RGBA", (20, 40), (200, 0, 0, 255)))
    chain, row = draw_sample(seed, True, product=product)
    for name, facts in read_chain(chain).items():
        truth = parse(row)[name]
        assert (facts.kind, facts.light, facts.flaws) == ("product", truth.light, truth.flaws)
        assert (facts.body is not None) == ("other_colour" in truth.flaws)
        assert (facts.label is not None) == ("other_label" in truth.flaws)
        assert facts.cap is None


PIECES = [
    *("<think>", "</think>", "<answer>", "Original:", "A:", "B:", "H:", "I:", ",", ".", " ", "\n"),
    *("red bottle", "blue label", "no cap", "green cap", "light left", "shadow left", "too wide"),
    *("red", "bottle", "\0", "ünsinn", "{side}", "shadow too long right", "second cap left"),
]


@given(st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3)).map("".join))
def test_any_text_can_be_read(text):
    stated = read_chain(text)
    assert stated.keys() <= {"original", *"ABCDEFGH"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("<think></think><answer>A</answer>", {}),
        ("A: pink jar, red label, rubbish", {"A": ImageFacts(label="red")}),
        ("<think>A: red jar", {"A": ImageFacts("jar", "red")}),
        ("A: red jar.</think>B: red can.", {"A": ImageFacts("jar", "red")}),
        ("B: can.<think>A:  red   jar</think>", {"A": ImageFacts("jar", "red")}),
        ("A: red jar, blue can. A: white cap.", {"A": ImageFacts("jar", "red")}),
        ("A:B: light left.", {"A": ImageFacts(), "B": ImageFacts(light="left")}),
        # Without a description of the original, or of the light, there is nothing to compare.
        ("A: red jar, shadow left.", {"A": ImageFacts("jar", "red")}),
        (
            "A: shadow too short left, light left.",
            {"A": ImageFacts(light="left", flaws=frozenset({"wrong_length", "wrong_side"}))},
        ),
        (
            "A: red can, red label. Original: blue jar, red label.",
            {
                "A": ImageFacts("can", "red", "red", flaws=frozenset({"other_colour"})),
                "original": ImageFacts("jar", "blue", "red"),
            },
        ),
    ],
)
def test_partial_chains(text, expected):
    assert read_chain(text) == expected


def test_scenes_are_read_by_id(tmp_path):
    rows = [draw_sample(seed, True)[1] | {"id": f"s{seed}"} for seed in range(3)]
    path = write_rows(tmp_path, *rows)
    assert read_scenes(path, ["s2", "s0"]) == {"s0": parse(rows[0]), "s2": parse(rows[2])}
    assert find_scenes(str(tmp_path), ["s1"]) == {"s1": parse(rows[1])}
    assert find_scenes(str(tmp_path / "other"), ["s1"]) is None
    with pytest.raises(UserError, match=r"scenes\.jsonl: lacks 2 of 3 samples, the first is x;"):
        read_scenes(path, ["s1", "x", "y"])


def test_scenes_are_copied_and_an_old_copy_removed(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_rows(source, draw_sample(0, True)[1])
    copy_scenes(str(source), str(target))
    assert (target / "scenes.jsonl").read_bytes() == (source / "scenes.jsonl").read_bytes()
    assert len(list(target.iterdir())) == 1
    (source / "scenes.jsonl").unlink()
    copy_scenes(str(source), str(target))
    assert list(target.iterdir()) == []


def edit(**fields):
    """Changes fields of candidate B."""
    return lambda row: row["images"]["B"].update(fields)


FLAW = {"name": "bent", "strength": 0.5, "breaks": ["appearance_deformation"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("id"), "the line must have exactly the fields id, images"),
        (lambda row: row.update(more=1), "the line must have exactly the fields id, images"),
        (lambda row: row.update(id=7), "field 'id' is no string"),
        (lambda row: row.update(id="s"), "has the 'id' of line 1"),
        (lambda row: row.update(images=[]), "field 'images' must have the keys original, A, B"),
        (lambda row: row["images"].pop("C"), "field 'images' must have the keys original, A, B"),
        (lambda row: row["images"].update(B=[]), "image 'B' must have exactly the fields body,"),
        (lambda row: row["images"]["B"].pop("cap"), "image 'B' must have exactly the fields body,"),
        (edit(kind=None), "image 'B': field 'kind' is no string"),
        (edit(cap="pink"), "image 'B': field 'cap' is no colour; give null or one of red, blue,"),
        (edit(body=["red"]), "image 'B': field 'body' is no colour"),
        (edit(light="top"), "image 'B': field 'light' must be left or right"),
        (edit(flaws={}), "image 'B': field 'flaws' is no list"),
        (edit(flaws=["bent"]), "a flaw of image 'B' must have exactly the fields breaks, name,"),
        (edit(flaws=[FLAW | {"name": "odd"}]), "a flaw of image 'B': field 'name' must be one of"),
        (edit(flaws=[FLAW | {"strength": float("nan")}]), "field 'strength' must be above 0"),
        (edit(flaws=[FLAW | {"strength": True}]), "field 'strength' must be above 0"),
        (edit(flaws=[FLAW | {"breaks": ["all"]}]), "field 'breaks' must list some of appearance_"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, change, words):
    first, second = draw_sample(0, True)[1], draw_sample(1, True)[1] | {"id": "t"}
    change(second)
    path = write_rows(tmp_path, first, second)
    with pytest.raises(UserError) as error:
        read_scenes(path, ["s"])
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        (b'{"id": "s", "id": "s"}', "is given twice"),
        (b"1" * 5000, "line 1"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, words):
    path = tmp_path / "scenes.jsonl"
    path.write_bytes(line)
    with pytest.raises(UserError, match=r"scenes\.jsonl: line 1: ") as error:
        find_scenes(str(tmp_path), [])
    assert words in str(error.value)


def test_a_folder_in_its_place_is_refused(tmp_path):
    (tmp_path / "scenes.jsonl").mkdir()
    with pytest.raises(UserError, match=r"scenes\.jsonl: can't be read"):
        find_scenes(str(tmp_path), [])
