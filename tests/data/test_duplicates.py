import io
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aesthetic_jax.data.duplicates import _groups, find_duplicates
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.records import Record, Records
from aesthetic_jax.data.survey import survey


def picture(seed, quality=95):
    """Coarse random fields: dissimilar for different seeds, near-same for different qualities."""
    fields = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(fields).resize((96, 96), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


class Listed(Records):
    """Records from (id, images, answer), all of one dimension."""

    def __init__(self, *rows):
        self.rows = [
            Record(x, DIMENSIONS[0], tuple(y), frozenset(z), len(y) - 1, None, None, *w)
            for x, y, z, *w in rows
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def ids(self):
        return [x.id for x in self.rows]

    def image_name(self, index, position):
        return f"{self.rows[index].id}/{position}"

    def has_reasoning(self):
        return np.zeros(len(self.rows), bool)

    def dimensions(self):
        return np.array([DIMENSIONS.index(x.dimension) for x in self.rows])

    def num_options(self):
        return np.array([x.num_options for x in self.rows])


def pictures(*seeds):
    return [picture(seed) for seed in seeds]


def find(**splits):
    return find_duplicates(survey({name: Listed(*rows) for name, rows in splits.items()}))


def test_a_clean_data_set_has_nothing():
    rows = [(str(i), pictures(*range(5 * i, 5 * i + 5)), "AB") for i in range(12)]
    duplicates, leakage = find(train=rows[:8], test=rows[8:])
    assert duplicates == {
        "distance": 6,
        "distinct_files": 60,
        "distinct_images": 60,
        "shared_files": 0,
        "shared_images": 0,
        "groups": [],
        "within_samples": [],
        "contradictions": [],
    }
    nothing = {"groups": [], "samples": {"train": 0, "test": 0}}
    assert leakage == {"ids": [], "originals": nothing, "images": nothing}


def test_copies_and_leaks_are_named():
    duplicates, leakage = find(
        train=[
            ("a", [picture(0), picture(1), picture(2)], "A"),
            ("b", [picture(0), picture(3), picture(3, 60)], "A"),  # a's original; a candidate twice
            ("c", [picture(4), picture(5), picture(6)], ""),
            ("d", [picture(7), picture(8), picture(9)], ""),
        ],
        test=[
            (
                "e",
                [picture(0, 50), picture(10), picture(11)],
                "A",
            ),  # a's and b's original, encoded anew
            ("f", [picture(12), picture(13), picture(5)], "A"),  # a candidate of c
            ("c", [picture(14), picture(15), picture(16)], "B"),  # c's id
        ],
    )
    originals = ["train/a/original", "train/b/original", "test/e/original"]
    candidates = ["train/c/A", "test/f/B"]
    assert duplicates["groups"] == [originals, candidates]
    assert duplicates["within_samples"] == [["train/b/A", "train/b/B"]]
    assert duplicates["contradictions"] == []
    assert (duplicates["distinct_files"], duplicates["distinct_images"]) == (19, 17)
    assert (duplicates["shared_files"], duplicates["shared_images"]) == (4, 5)
    assert leakage["ids"] == [["train/c", "test/c"]]
    assert leakage["originals"] == {"groups": [originals], "samples": {"train": 2, "test": 1}}
    assert leakage["images"] == {
        "groups": [originals, candidates],
        "samples": {"train": 3, "test": 2},
    }


def test_an_original_that_is_a_candidate_elsewhere_is_an_image_in_two_splits():
    rows = [("a", pictures(0, 1, 2), "A")], [("b", pictures(3, 0, 4), "A")]
    duplicates, leakage = find(train=rows[0], validation=rows[1])
    assert (
        duplicates["groups"]
        == leakage["images"]["groups"]
        == [["train/a/original", "validation/b/A"]]
    )
    assert leakage["originals"]["groups"] == []


def test_distance_bounds_what_is_near():
    splits = {"train": Listed(("a", [picture(0), picture(0, 25), picture(1)], "A"))}
    assert find_duplicates(survey(splits), 12)[0]["within_samples"] == [
        ["train/a/original", "train/a/A"]
    ]
    data = survey(splits)
    apart = (int(data.images["hash"][0]) ^ int(data.images["hash"][1])).bit_count()
    assert apart > 0
    assert find_duplicates(data, apart)[0]["within_samples"]
    assert not find_duplicates(data, apart - 1)[0]["within_samples"]


def test_contradictions_need_the_same_question():
    images, turned = pictures(0, 1, 2), pictures(0, 2, 1)
    contradiction = [["train/x/A", "train/y/B"]]
    base = ("x", images, "A")
    assert find(train=[base, ("y", turned, "B")])[0]["contradictions"] == []
    assert find(train=[base, ("y", turned, "")])[0]["contradictions"] == contradiction
    assert (
        find(train=[base, ("y", [picture(9), *turned[1:]], "")])[0]["contradictions"] == []
    )  # another original
    for change in ({"dimension": DIMENSIONS[1]}, {"question": "Which?"}):
        other = Listed(base, ("y", turned, ""))
        vars(other)["rows"][1] = Record(**vars(other.rows[1]) | change)
        assert find_duplicates(survey({"train": other}))[0]["contradictions"] == []


def test_broken_images_are_no_copies_of_one_another():
    rows = [(str(i), [picture(i), b"", b"no image"], "A") for i in range(3)]
    duplicates, leakage = find(train=rows[:1], test=rows[1:])
    assert duplicates["groups"] == leakage["images"]["groups"] == []
    assert duplicates["distinct_images"] == 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30))
@settings(max_examples=100, deadline=None)
def test_groups_are_those_of_several_owners(rows):
    label, owner = (np.array([row[i] for row in rows], np.int64) for i in range(2))
    by_label = {x: [i for i, row in enumerate(rows) if row[0] == x] for x in set(label.tolist())}
    several = [places for places in by_label.values() if len({rows[i][1] for i in places}) > 1]
    found = [group.tolist() for group in _groups(label, owner)]
    assert found == sorted(several, key=lambda places: (-len(places), places[0]))
    assert all(len(x) >= len(y) for x, y in itertools.pairwise(found))
