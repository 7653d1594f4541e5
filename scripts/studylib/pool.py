"""The study's questions: a pool to train on, a test, and a probe to calibrate the hard type.

Types of questions:
    easy     flaws as strong as those that the model has learnt from
    hard     weaker flaws, and only ones that the model names worst
    flipped  easy, but the answer is wrong: one or two letters are inverted

A type stands only in types.json beside the manifest: ids, order and records don't reveal it.
Samples have no chain of thought, because it would contradict a flipped answer.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np

from aesthetic_jax.data.answers import option_letters
from aesthetic_jax.data.manifest import DIMENSIONS, Sample, image_role, write_manifest
from aesthetic_jax.data.scenes.facts import scene_line
from aesthetic_jax.data.scenes.flaws import BREAKS
from aesthetic_jax.data.scenes.sample import make_sample

TYPES = ("easy", "hard", "flipped")
SIZE = 56  # pixels, as in scripts/recipe.sh


class Look(NamedTuple):
    """How the candidates of a question fail."""

    strength: tuple[float, float]  # range of the strength of all flaws
    breaking: tuple[str, ...]  # flaws that candidates may fail by


EASY = dict.fromkeys(DIMENSIONS, Look((0.8, 1.0), tuple(BREAKS)))  # strengths as in recipe.sh
# Meant to be solved 25 to 55 % of the time before stage 2, in every dimension. `scripts/study.sh
# FOLDER probe` measures other strengths to choose from; `calibrate` measures these.
HARD = {
    "appearance_deformation": Look((0.4, 0.7), ("other_colour", "other_label", "cap_missing")),
    "physical_shadow": Look((0.3, 0.6), ("wrong_length", "doubled")),
    "placement_layout": Look((0.2, 0.5), ("sunk", "floating", "leaning")),
    "extension_rationality": Look((0.4, 0.7), ("cap_missing", "second_cap", "label_spill")),
}


class Part(NamedTuple):
    """Questions of one type in one split; their number is a multiple of 4, for 4 dimensions."""

    type: str
    split: str
    num: int
    looks: dict[str, Look]  # by dimension


POOL = (
    Part("easy", "train", 800, EASY),
    Part("hard", "train", 152, HARD),
    Part("flipped", "train", 48, EASY),
    Part("easy", "test", 1200, EASY),
    Part("hard", "test", 1200, HARD),
)
_STRENGTHS = ((0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9))
PROBE = tuple(  # the hard type at other strengths, to choose HARD from
    Part(
        f"{strength[0]}-{strength[1]}",
        "train",
        200,
        {dimension: look._replace(strength=strength) for dimension, look in HARD.items()},
    )
    for strength in _STRENGTHS
)
# Names of question sets: their parts, and a seed that no other data of the recipe has.
SETS = {"pool": (POOL, 500_000), "probe": (PROBE, 600_000)}


class Question(NamedTuple):
    """A question to render, and where it goes."""

    id: str
    part: Part
    seed: int
    number: int  # of the sample within its seed; it decides the dimension


def plan_questions(parts: tuple[Part, ...], seed: int) -> list[Question]:
    """All questions in the order of the manifest; ids count up in this order.

    Args:
        parts: what to render.
        seed: part i gets seed + i. The next seed shuffles, so that the order reveals no type.
    """
    rows = [(part, seed + i, number) for i, part in enumerate(parts) for number in range(part.num)]
    order = np.random.default_rng(seed + len(parts)).permutation(len(rows))
    return [Question(f"{place + 1:06d}", *rows[row]) for place, row in enumerate(order)]


def flip(rng: np.random.Generator, answer: tuple[str, ...], num_options: int) -> tuple[str, ...]:
    """Inverts one or two letters of an answer: letters that pass now fail, and the reverse."""
    letters = list(option_letters(num_options))
    changed = rng.choice(letters, size=int(rng.integers(1, 3)), replace=False)
    return tuple(sorted(set(answer) ^ {str(letter) for letter in changed}))


def write_question(folder: str, question: Question) -> tuple[Sample, dict[str, Any]]:
    """Renders a question and writes its images; returns its Sample and its line of scenes.jsonl.

    Args:
        folder: of the manifest.
        question: what to render.
    """
    part, number = question.part, question.number
    look = part.looks[DIMENSIONS[number % len(DIMENSIONS)]]
    rendered = make_sample(question.seed, number, SIZE, look.strength, breaking=look.breaking)
    (pathlib.Path(folder) / "images" / question.id).mkdir(parents=True)
    paths = []
    for position, image in enumerate(rendered.images):
        paths.append(f"images/{question.id}/{image_role(position).lower()}.jpg")
        (pathlib.Path(folder) / paths[-1]).write_bytes(image)
    answer = rendered.answer
    if part.type == "flipped":
        rng = np.random.default_rng((question.seed, number, 1))
        answer = flip(rng, answer, len(paths) - 1)
    sample = Sample(
        id=question.id,
        split=part.split,
        dimension=rendered.dimension,
        original=paths[0],
        candidates=tuple(paths[1:]),
        answer=answer,
    )
    return sample, scene_line(question.id, rendered.facts)


def write_questions(folder: pathlib.Path, questions: list[Question], workers: int) -> None:
    """Writes manifest.jsonl, scenes.jsonl, types.json and the images; the folder appears whole.

    Args:
        folder: of the manifest; it must not exist.
        questions: from `plan_questions`.
        workers: processes that render; the files don't depend on it.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write = functools.partial(write_question, str(partial))
    # Fresh processes: a fork of a process with threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        written = list(pool.map(write, questions, chunksize=16))
    write_manifest([sample for sample, _ in written], str(partial / "manifest.jsonl"))
    lines = "".join(json.dumps(line) + "\n" for _, line in written)
    (partial / "scenes.jsonl").write_text(lines)
    types = {question.id: question.part.type for question in questions}
    (partial / "types.json").write_text(json.dumps(types) + "\n")
    partial.rename(folder)
