"""The synthesize command: the same bytes from any number of workers, scenes.jsonl, descriptions."""

import json

import pytest

from aesthetic_jax.data.manifest import DIMENSIONS, read_manifest
from aesthetic_jax.data.scenes.facts_file import read_scenes
from aesthetic_jax.data.scenes.flaws import BREAKS

NUM = 20  # more than one worker renders at a time


@pytest.fixture(scope="module")
def synthesize(command, tmp_path_factory):
    """Renders NUM small samples; returns their folder."""

    def run(*words):
        out = tmp_path_factory.mktemp("synthesize") / "out"
        common = (f"--out={out}", f"--num={NUM}", "--image_size=48", "--seed=5")
        result = command("synthesize", *common, *words)
        assert result.returncode == 0, result.stderr
        return out

    return run


@pytest.fixture(scope="module")
def samples(synthesize):
    return synthesize("--workers=1")


@pytest.fixture(scope="module")
def descriptions(synthesize):
    return synthesize("--describe", "--workers=1")


def contents(folder):
    return {x.relative_to(folder): x.read_bytes() for x in folder.rglob("*") if x.is_file()}


def rows(folder):
    return [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["samples", "descriptions"])
def test_any_number_of_workers_writes_the_same(synthesize, request, kind):
    expected = contents(request.getfixturevalue(kind))
    number = 5 if kind == "samples" else 1
    assert len(expected) == number * NUM + 2  # with manifest.jsonl and scenes.jsonl
    more = () if kind == "samples" else ("--describe",)
    assert contents(synthesize("--workers=2", *more)) == expected


def test_a_candidate_passes_exactly_if_none_of_its_flaws_breaks_the_dimension(samples):
    read = read_manifest(str(samples / "manifest.jsonl"))
    scenes = rows(samples)
    assert [row["id"] for row in scenes] == [sample.id for sample in read]
    assert {sample.dimension for sample in read} == set(DIMENSIONS)
    for sample, row in zip(read, scenes, strict=True):
        assert list(row["images"]) == ["original", *"ABCD"]
        assert row["images"]["original"]["flaws"] == []
        for letter in "ABCD":
            flaws = row["images"][letter]["flaws"]
            assert all(flaw["breaks"] == list(BREAKS[flaw["name"]]) for flaw in flaws)
            broken = {dimension for flaw in flaws for dimension in flaw["breaks"]}
            assert (letter in sample.answer) == (sample.dimension not in broken)
    assert read_scenes(str(samples / "scenes.jsonl"), [sample.id for sample in read])


def test_a_description_has_one_image_a_question_and_a_text(descriptions):
    read = read_manifest(str(descriptions / "manifest.jsonl"))
    assert len(read) == NUM
    for sample in read:
        assert sample.images == (f"images/{sample.id}/original.jpg",)
        assert sample.answer == ()
        assert sample.question.startswith("Describe Image-1.")
        assert sample.reasoning.startswith("Original: ")
    scenes = read_scenes(str(descriptions / "scenes.jsonl"), [sample.id for sample in read])
    assert all(list(images) == ["original"] for images in scenes.values())
    assert any(images["original"].flaws for images in scenes.values())


@pytest.mark.parametrize("flag", ["products", "backgrounds"])
def test_descriptions_take_no_images_of_the_users(command, refuses, tmp_path, flag):
    words = ("synthesize", f"--out={tmp_path}/out", "--num=2", "--describe", f"--{flag}={tmp_path}")
    refuses(command(*words), f"--{flag}: doesn't go with --describe")
    assert not list(tmp_path.iterdir())
