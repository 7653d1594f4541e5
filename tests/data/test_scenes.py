import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.prompts import completion_text
from aesthetic_jax.data.scenes.chains import read_chain
from aesthetic_jax.data.scenes.facts_file import ImageFacts
from aesthetic_jax.data.scenes.flaws import BREAKS, PARTS, Flaw
from aesthetic_jax.data.scenes.products import cutout_product, draw_product, random_product
from aesthetic_jax.data.scenes.render import random_scene, render
from aesthetic_jax.data.scenes.sample import make_description, make_sample

# What a person would say; the code must agree.
FORM = ("appearance_deformation",)
WHOLENESS = ("appearance_deformation", "extension_rationality")
BROKEN = {
    **dict.fromkeys(("stretched", "bent", "other_label", "other_colour"), FORM),
    **dict.fromkeys(("cap_missing", "second_cap", "growth", "label_spill", "cut_off"), WHOLENESS),
    **dict.fromkeys(("wrong_side", "wrong_length", "missing", "doubled"), ("physical_shadow",)),
    **dict.fromkeys(("floating", "sunk", "over_edge", "leaning"), ("placement_layout",)),
}
PASSES = ("fine.", "good.", "passes.")


def breaks(image, dimension):
    return any(dimension in BROKEN[flaw.name] for flaw in image.flaws)


def names_of(image):
    return frozenset(flaw.name for flaw in image.flaws)


SAMPLES = [make_sample(0, number, 40, (0.3, 1.0), thorough=0.0) for number in range(400)]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.integers(0, 10**6))
def test_same_seed_same_bytes(seed, number):
    first, second = (make_sample(seed, number, 32, (0.5, 1.0)) for _ in range(2))
    assert first == second
    assert make_sample(seed + 1, number, 32, (0.5, 1.0)).images != first.images


def test_samples_are_balanced_and_all_answers_occur():
    answers = [sample.answer for sample in SAMPLES]
    assert len(set(answers)) == 16
    passing = np.mean([len(answer) for answer in answers]) / 4
    assert abs(passing - 0.5) < 4 * 0.5 / np.sqrt(4 * len(SAMPLES))
    for dimension in DIMENSIONS:
        assert sum(sample.dimension == dimension for sample in SAMPLES) == len(SAMPLES) // 4


def test_answer_and_reasoning_follow_from_the_flaws():
    for sample in SAMPLES:
        failing = [breaks(image, sample.dimension) for image in sample.facts[1:]]
        assert sample.answer == tuple(
            letter for letter, fails in zip("ABCD", failing, strict=True) if not fails
        )
        for letter, fails in zip("ABCD", failing, strict=True):
            (sentence,) = (x for x in sample.reasoning.split(". ") if x.startswith(f"{letter}:"))
            assert any(
                word in sentence
                for word in (("wrong", "bad", "fails") if fails else ("fine", "good", "passes"))
            )


def test_candidates_fail_by_chosen_flaws_alone():
    chosen = ("second_cap", "leaning")
    samples = [make_sample(3, number, 40, (0.3, 1.0), breaking=chosen) for number in range(80)]
    failing, seen = dict.fromkeys(DIMENSIONS, 0), set()
    for sample in samples:
        asked = sample.dimension
        failing[asked] += 4 - len(sample.answer)
        flaws = [flaw.name for image in sample.facts[1:] for flaw in image.flaws]
        assert {name for name in flaws if asked in BREAKS[name]} <= set(chosen)
        seen |= set(flaws)
    assert len(seen) > 10  # distractors aren't restricted
    assert failing.pop("physical_shadow") == 0  # no chosen flaw breaks it
    assert all(20 < count < 60 for count in failing.values())


def test_what_a_flaw_breaks_depends_on_its_name():
    assert BREAKS == BROKEN


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_flaws_of_other_dimensions_appear_and_never_break_the_asked_one(dimension):
    samples = [sample for sample in SAMPLES if sample.dimension == dimension]
    passing = [
        image
        for sample in samples
        for letter, image in zip("ABCD", sample.facts[1:], strict=True)
        if letter in sample.answer
    ]
    assert not any(breaks(image, dimension) for image in passing)
    distracted = np.mean([bool(image.flaws) for image in passing])
    assert distracted > 0.5
    names = {flaw.name for image in passing for flaw in image.flaws}
    unclear = {"missing"} if dimension == "placement_layout" else set()
    assert names == {name for name in BROKEN if dimension not in BROKEN[name]} - unclear
    for sample in samples:
        for image in sample.facts:
            parts = [part for part, flaws in PARTS.items() for x in image.flaws if x.name in flaws]
            assert len(parts) == len(set(parts))
        assert not sample.facts[0].flaws


def test_a_description_tells_all_of_its_only_image():
    samples = [make_description(0, number, 32, (0.5, 1.0)) for number in range(120)]
    for number, sample in enumerate(samples):
        assert sample == make_description(0, number, 32, (0.5, 1.0))
        assert sample.dimension == DIMENSIONS[number % 4]
        assert (len(sample.images), len(sample.facts), sample.answer) == (1, 1, ())
        assert len(sample.reasoning.split(", ")) == 9
        assert sample.question.startswith("Describe Image-1. Does it ")
        (image,) = sample.facts
        told = read_chain(completion_text(sample.reasoning, sample.answer))
        assert told == {"original": ImageFacts(**vars(image) | {"flaws": names_of(image)})}
        fails = breaks(image, sample.dimension)
        assert sample.reasoning.endswith(("wrong.", "bad.", "fails.") if fails else PASSES)
    assert len({sample.question for sample in samples}) == len(DIMENSIONS)
    seen = {name for sample in samples for name in names_of(sample.facts[0])}
    assert seen == BROKEN.keys() - {"other_colour", "other_label"}


def test_reasoning_is_short_and_of_few_words():
    for sample in SAMPLES:
        spoken = {
            "light": "physical_shadow",
            "shape": "appearance_deformation",
            "float": "placement_layout",
        }
        for word, dimension in spoken.items():
            assert word not in sample.reasoning or sample.dimension == dimension
    words = [sample.reasoning.split() for sample in SAMPLES]
    assert max(map(len, words)) <= 72
    assert len({word for chain in words for word in chain}) < 300
    assert all(sample.reasoning.isascii() for sample in SAMPLES)


def test_thorough_samples_tell_what_every_image_shows():
    for number in range(40):
        sample, plain = (
            make_sample(0, number, 32, (0.5, 1.0), thorough) for thorough in (1.0, 0.0)
        )
        assert (sample.images, sample.answer) == (plain.images, plain.answer)
        original, *candidates = sample.reasoning.removesuffix(".").split(". ")
        assert original.startswith("Original: ")
        assert len(original.split(", ")) == 7
        for letter, sentence, image in zip("ABCD", candidates, sample.facts[1:], strict=True):
            assert sentence.startswith(f"{letter}: ")
            assert len(sentence.split(", ")) == 9
            names = {flaw.name for flaw in image.flaws}
            assert ("floating" in names) == any(word in sentence for word in ("float", "hovers"))
            assert ("cap_missing" in names) == any(
                word in sentence for word in ("no cap", "cap missing", "cap gone")
            )
            fails = breaks(image, sample.dimension)
            assert fails == any(word in sentence for word in ("wrong", "bad", "fails"))


def test_nothing_but_pixels_tells_the_answer():
    """Formats are the same, and file sizes predict passing no better than chance."""
    sizes, passing = [], []
    for sample in SAMPLES:
        own = np.array([len(image) for image in sample.images[1:]], float)
        sizes.extend(own - own.mean())
        passing.extend(letter in sample.answer for letter in "ABCD")
        for image in sample.images:
            opened = Image.open(io.BytesIO(image))
            assert (opened.format, opened.size, opened.mode) == ("JPEG", (40, 40), "RGB")
            assert not opened.getexif()
    ranks = np.argsort(np.argsort(sizes))
    passing = np.array(passing)
    # AUC of the rule "the larger file passes".
    area = (ranks[passing].mean() - (passing.sum() - 1) / 2) / (~passing).sum()
    assert 0.4 < area < 0.6


@pytest.mark.parametrize("name", BROKEN)
def test_every_flaw_is_visible_and_grows_with_its_strength(name):
    """The strongest form changes the picture more than the weakest, which is still visible."""
    changes = []
    for strength in (0.3, 1.0):
        per_product = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            product, scene = random_product(rng), random_scene(rng)
            sound = np.asarray(render(product, scene, (), 96), float)
            flaw = Flaw(name, strength, 1, "black" if product.colour != "black" else "yellow")
            per_product.append(
                np.abs(np.asarray(render(product, scene, (flaw,), 96), float) - sound).mean()
            )
        changes.append(np.mean(per_product))
    assert changes[1] > changes[0] > 0.25


@pytest.mark.parametrize("size", [32, 100, 448])
def test_any_size_and_the_same_picture(size):
    rng = np.random.default_rng(3)
    product, scene = random_product(rng), random_scene(rng)
    image = render(product, scene, (), size)
    assert image.size == (size, size)
    small, reference = (
        x.resize((16, 16), Image.Resampling.BOX) for x in (image, render(product, scene, (), 448))
    )
    assert np.abs(np.asarray(small, float) - np.asarray(reference, float)).mean() < 6


def test_light_shows_in_shading_and_shadow():
    rng = np.random.default_rng(0)
    product = random_product(rng)
    scene = random_scene(rng)
    sides = {}
    for light in (-1, 1):
        pixels = np.asarray(
            render(product, scene.__class__(**(vars(scene) | {"light": light})), (), 200), float
        ).mean(-1)
        sides[light] = (
            (pixels[20, :40].mean(), pixels[20, -40:].mean()),
            (pixels[155, :60].min(), pixels[155, -60:].min()),
        )
    for light, ((wall_left, wall_right), (left, right)) in sides.items():
        assert (wall_left > wall_right) == (light < 0)
        assert (left > right) == (light < 0)  # the shadow is dark on the side away from the light


def test_users_cut_outs_and_backgrounds_make_the_same_kind_of_sample():
    cutout = draw_product("jar", "red", "white", "blue", 2, 120)
    backdrop = Image.new("RGB", (80, 60), (120, 180, 90))
    for number in range(8):
        sample = make_sample(0, number, 64, (0.5, 1.0), cutouts=[cutout], backdrops=[backdrop])
        assert len(sample.images) == 5
        assert sample.reasoning
        corner = Image.open(io.BytesIO(sample.images[0])).getpixel((32, 2))
        assert max(abs(a - b) for a, b in zip(corner, (120, 180, 90), strict=True)) < 12
    assert cutout_product(cutout).colour is None
