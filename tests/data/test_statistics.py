import collections
import io
import json
import shutil
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.images import tile_image
from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample, read_manifest, write_manifest
from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.prompts import completion_text, question_text
from aesthetic_jax.data.records import Record, Records, open_splits
from aesthetic_jax.data.statistics import MOST_SIZES, summarize
from aesthetic_jax.data.survey import count_tokens, survey
from aesthetic_jax.data.tokenizer import train_tokenizer
from aesthetic_jax.errors import UserError

TOKENIZER = train_tokenizer(
    [completion_text("A: fine, passes.", ("A",)), question_text("physical_shadow", 4)], 320
)


def make_preprocessor(max_tiles=4, **fields):
    settings = dict(
        tile_size=28,
        tokens_per_tile=4,
        max_images=9,
        prompt_buckets=(4096,),
        completion_buckets=(512,),
    )
    return Preprocessor(tokenizer=TOKENIZER, max_tiles=max_tiles, **settings | fields)


def encode(width, height, kind="PNG", seed=0):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


KINDS = [(20, 12, "PNG"), (30, 40, "JPEG"), (9, 50, "WEBP"), (64, 64, "JPEG"), (33, 33, "PNG")]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """50 samples: all splits, dimensions and numbers of candidates, five sizes, three formats."""
    folder = tmp_path_factory.mktemp("data")
    rng, samples = np.random.default_rng(0), []
    for number, kind in enumerate(KINDS):
        (folder / f"{number}.img").write_bytes(encode(*kind))
    for number in range(50):
        options = int(rng.integers(2, 9))
        images = [f"{rng.integers(len(KINDS))}.img" for _ in range(1 + options)]
        answer = tuple(x for x in "ABCDEFGH"[:options] if rng.random() < 0.4)
        reasoning = "A: fine, passes. " * int(rng.integers(1, 9)) if number % 3 else None
        question = None if number % 7 else "Which of them are sold?"
        split, dimension = SPLITS[number % 5 // 2], DIMENSIONS[number % 4]
        samples.append(
            Sample(
                f"s{number}",
                split,
                dimension,
                images[0],
                tuple(images[1:]),
                answer,
                reasoning,
                question,
            )
        )
    write_manifest(samples, str(folder / "manifest.jsonl"))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def built(manifest, tmp_path_factory, make_dataset):
    folder = tmp_path_factory.mktemp("built")
    make_dataset(manifest.parent, read_manifest(str(manifest)), folder)
    return folder


def spread(values):
    values = sorted(values)
    rank = [
        values[-(-len(values) * p // 100) - 1] for p in (50, 95)
    ]  # the least that p % don't exceed
    mean = pytest.approx(sum(values) / len(values))
    return {
        "count": len(values),
        "mean": mean,
        "min": values[0],
        "p50": rank[0],
        "p95": rank[1],
        "max": values[-1],
    }


@pytest.mark.parametrize("split", [None, *SPLITS])
def test_statistics_are_what_plain_counting_gives(manifest, split):
    preprocessor = make_preprocessor(max_images=6, prompt_buckets=(300,), completion_buckets=(64,))
    data = survey(open_splits(str(manifest)), preprocessor)
    chosen = np.ones(50, bool) if split is None else data.samples["split"] == SPLITS.index(split)
    summary = summarize(data, chosen, preprocessor)

    samples = [x for x in read_manifest(str(manifest)) if split in (None, x.split)]
    images = [KINDS[int(path[0])] for x in samples for path in x.images]
    large = make_preprocessor()
    records = {x: r[i] for r in open_splits(str(manifest)).values() for i, x in enumerate(r.ids())}
    prompts = [large.prompt(records[x.id], "x") for x in samples]
    taught = [completion_text(x.reasoning, x.answer) for x in samples if x.reasoning]
    taught = [len(TOKENIZER.encode(text)) for text in taught]
    passing = {
        letter: pytest.approx(
            np.mean([letter in x.answer for x in samples if len(x.candidates) > i])
        )
        for i, letter in enumerate("ABCDEFGH")
        if any(len(x.candidates) > i for x in samples)
    }
    sizes = [(manifest.parent / path).stat().st_size for x in samples for path in x.images]
    assert summary == {
        "samples": len(samples),
        "dimensions": {name: sum(x.dimension == name for x in samples) for name in DIMENSIONS},
        "options": dict(collections.Counter(str(len(x.candidates)) for x in samples)),
        "answers": dict(collections.Counter(",".join(x.answer) or "None" for x in samples)),
        "passing": passing,
        "reasoning": pytest.approx(len(taught) / len(samples)),
        "questions": pytest.approx(sum(x.question is not None for x in samples) / len(samples)),
        "images": len(images),
        "unreadable_images": 0,
        "formats": dict(collections.Counter(x[2] for x in images)),
        "sizes": dict(collections.Counter(f"{x[0]}x{x[1]}" for x in images)),
        "width": spread([x[0] for x in images]),
        "height": spread([x[1] for x in images]),
        "bytes": spread(sizes),
        "total_bytes": sum(sizes),
        "tiles": spread([len(tiles) for tiles, _ in prompts]),
        "prompt_tokens": spread([len(ids) for _, ids in prompts]),
        "completion_tokens": spread(taught),
        "too_large": {
            "images": sum(len(x.images) > 6 for x in samples),
            "prompt": sum(len(ids) > 300 for _, ids in prompts),
            "completion": sum(tokens > 64 for tokens in taught),
        },
    }
    assert list(summary["answers"].values()) == sorted(summary["answers"].values(), reverse=True)
    json.dumps(summary)


@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("max_images", 6, "images"),
        ("prompt_buckets", (300,), "prompt"),
        ("completion_buckets", (64,), "completion"),
    ],
)
def test_what_does_not_fit_is_what_the_preprocessor_refuses(manifest, field, value, key):
    preprocessor, splits, refused = (
        make_preprocessor(**{field: value}),
        open_splits(str(manifest)),
        [],
    )
    for record in (record for records in splits.values() for record in records):
        try:
            preprocessor(record, 0, with_completion=record.reasoning is not None)
        except UserError as error:
            refused.append(str(error))
    assert refused
    assert all(f"data.{field}" in error for error in refused)
    summary = summarize(survey(splits, preprocessor), np.ones(50, bool), preprocessor)
    assert summary["too_large"] == {"images": 0, "prompt": 0, "completion": 0} | {key: len(refused)}


@given(
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=3, max_size=5),
    max_tiles=st.integers(1, 12),
    system=st.sampled_from(["", "You judge."]),
    newline=st.booleans(),
    reasoning=st.one_of(
        st.none(), st.text(st.characters(exclude_characters="<>", codec="utf-8"), min_size=1)
    ),
)
@settings(max_examples=40, deadline=None)
def test_tokens_are_counted_as_the_preprocessor_makes_them(
    sizes, max_tiles, system, newline, reasoning
):
    preprocessor = make_preprocessor(max_tiles, system=system, final_newline=newline)
    images = tuple(encode(*size) for size in sizes)
    record = Record("x", DIMENSIONS[0], images, frozenset("A"), len(sizes) - 1, reasoning, None)
    tiles, ids = preprocessor.prompt(record, "x")
    expected = None
    if reasoning is not None:
        text = completion_text(reasoning, record.answer, newline)
        expected = len(TOKENIZER.encode(text))
    assert count_tokens(preprocessor, record, sizes) == (len(tiles), len(ids), expected)
    decoded = [Image.open(io.BytesIO(image)).convert("RGB") for image in images]
    assert len(tiles) == sum(len(tile_image(image, 28, max_tiles)) for image in decoded)


def test_a_built_data_set_has_the_statistics_of_its_manifest(manifest, built):
    one, other = survey(open_splits(str(manifest))), survey(open_splits(data_dir=str(built)))
    assert one.ids == other.ids
    assert one.samples.tobytes() == other.samples.tobytes()
    assert one.images.tobytes() == other.images.tobytes()


def test_workers_change_nothing(manifest):
    splits = open_splits(str(manifest))
    one, four = survey(splits, make_preprocessor()), survey(splits, make_preprocessor(), workers=4)
    for left, right in zip(one, four, strict=True):
        assert left.tobytes() == right.tobytes() if isinstance(left, np.ndarray) else left == right


class Endless(Records):
    """Samples that count how many were asked for."""

    def __init__(self, number):
        self.number, self.asked, self.lock = number, 0, threading.Lock()

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        with self.lock:
            self.asked += 1
        return Record(str(index), DIMENSIONS[0], (encode(4, 4),) * 3, frozenset(), 2, None, None)

    def ids(self):
        return list(map(str, range(self.number)))

    def image_name(self, index, position):
        return f"{index}/{position}"

    def has_reasoning(self):
        return np.zeros(self.number, bool)

    def dimensions(self):
        return np.zeros(len(self), int)

    def num_options(self):
        return np.full(len(self), 4)


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_runs_ahead_by_few_samples(workers):
    records, ahead, totals = Endless(200), [], []

    def watch(items, total):
        totals.append(total)
        for number, item in enumerate(items):
            ahead.append(records.asked - number)
            yield item

    data = survey({"train": records}, workers=workers, progress=watch)
    assert (len(data.ids), totals) == (200, [200])
    assert max(ahead) <= 2 * workers + 1


def test_broken_images_are_listed_and_left_out(manifest, tmp_path):
    shutil.copytree(manifest.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "3.img").write_bytes((tmp_path / "3.img").read_bytes()[:300])
    (tmp_path / "4.img").write_bytes(b"")
    path = str(tmp_path / "manifest.jsonl")
    data = survey(open_splits(path), make_preprocessor(), workers=2)
    bad = {"3.img": "can't be decoded", "4.img": "is not an image of a known format"}
    expected = [
        (f"{sample.split}/{sample.id}/{letter}", image)
        for split in SPLITS
        for sample in read_manifest(path)
        if sample.split == split
        for letter, image in zip(["original", *"ABCDEFGH"], sample.images, strict=False)
        if image in bad
    ]
    assert [x["name"] for x in data.rejects] == [name for name, _ in expected]
    for reject, (_, image) in zip(data.rejects, expected, strict=True):
        assert reject["error"].startswith(f"{tmp_path}/{image}: {bad[image]}")
        assert "\n" not in reject["error"]
    summary = summarize(data, np.ones(50, bool))
    assert summary["unreadable_images"] == len(expected)
    assert set(summary["sizes"]) == {"20x12", "30x40", "9x50"}
    whole = sum(all(image not in bad for image in sample.images) for sample in read_manifest(path))
    assert summary["tiles"]["count"] == summary["prompt_tokens"]["count"] == whole


def test_damaged_records_are_listed_and_left_out(built, tmp_path):
    shutil.copytree(built / "screening" / "1.0.0", tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("*train*array_record*")
    content = bytearray(file.read_bytes())
    content[3000] ^= 255
    file.write_bytes(content)
    splits = open_splits(data_dir=str(tmp_path))
    data = survey(splits)
    lost = [f"train/{name}" for name in splits["train"].ids() if name not in data.ids]
    assert [x["name"] for x in data.rejects] == lost != []
    assert all("\n" not in x["error"] for x in data.rejects)
    assert summarize(data, data.samples["split"] >= 0)["samples"] == 50 - len(lost)
    assert set(data.ids) >= set(splits["test"].ids())


def test_rare_sizes_are_counted_together():
    class Sizes(Endless):
        def __getitem__(self, index):
            images = (encode(8, 8), encode(10 + index, 10), encode(10 + index, 10))
            return Record(str(index), DIMENSIONS[0], images, frozenset("B"), 2, None, None)

    sizes = summarize(survey({"test": Sizes(40)}), np.ones(40, bool))["sizes"]
    assert len(sizes) == MOST_SIZES + 1
    assert sizes["8x8"] == 40
    assert sizes["other"] == 2 * (40 - (MOST_SIZES - 1))
    assert next(iter(sizes)) == "8x8"


def test_nothing_is_a_data_set_too():
    summary = summarize(survey({"test": Endless(0)}), np.zeros(0, bool), make_preprocessor())
    assert (summary["samples"], summary["images"], summary["width"], summary["answers"]) == (
        0,
        0,
        None,
        {},
    )
