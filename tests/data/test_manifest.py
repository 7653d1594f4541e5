import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aesthetic_jax.data.manifest import DIMENSIONS, SPLITS, Sample, read_manifest, write_manifest
from aesthetic_jax.errors import UserError

LINE = {
    "id": "000001",
    "split": "train",
    "dimension": "physical_shadow",
    "original": "images/o.jpg",
    "candidates": ["images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg"],
    "answer": ["C", "A"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in "oabcd":
        (tmp_path / "data" / "images" / f"{name}.jpg").write_bytes(b"x")
    return tmp_path / "data"


def write(folder, *lines):
    path = folder / "manifest.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return str(path)


def error_of(path):
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_whole_line_is_read(folder):
    path = write(
        folder,
        LINE | {"reasoning": "Because.", "question": "Which?"},
        LINE | {"id": "2", "answer": []},
    )
    first, second = read_manifest(path)
    assert first == Sample(
        id="000001",
        split="train",
        dimension="physical_shadow",
        original="images/o.jpg",
        candidates=("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg"),
        answer=("A", "C"),
        reasoning="Because.",
        question="Which?",
    )
    assert first.images == ("images/o.jpg", *first.candidates)
    assert (second.answer, second.reasoning, second.question) == ((), None, None)


DESCRIPTION = LINE | {"candidates": [], "answer": [], "question": "A jar?", "reasoning": "Yes."}


def test_a_description_has_a_question_and_a_text_and_no_candidates(folder):
    (sample,) = read_manifest(write(folder, DESCRIPTION))
    assert sample.images == ("images/o.jpg",)
    assert (sample.candidates, sample.answer) == ((), ())
    assert (sample.question, sample.reasoning) == ("A jar?", "Yes.")


@pytest.mark.parametrize("field", ["question", "reasoning"])
def test_a_description_needs_a_question_and_a_text(folder, field):
    without = {name: value for name, value in DESCRIPTION.items() if name != field}
    for line in (without, DESCRIPTION | {field: None}):
        path = write(folder, line)
        assert error_of(path) == (
            f"{path}: line 1: field 'candidates' has 0 images; give 2 to 8, or none in a "
            "description, which has a question and a reasoning"
        )
    assert "give 2 to 8" in error_of(write(folder, DESCRIPTION | {field: ""}))
    assert f"field '{field}' is empty" in error_of(write(folder, DESCRIPTION | {field: " "}))


@pytest.mark.parametrize("number", [1, 9])
def test_a_question_and_a_text_allow_no_other_number_of_candidates(folder, number):
    path = write(folder, DESCRIPTION | {"candidates": ["images/a.jpg"] * number})
    message = f"{path}: line 1: field 'candidates' has {number} images; give 2 to 8"
    assert error_of(path) == message


def test_a_description_has_an_empty_answer(folder):
    path = write(folder, DESCRIPTION | {"answer": ["A"]})
    assert error_of(path) == (
        f"{path}: line 1: field 'answer' has \"A\"; there are no candidates, so give []"
    )


BAD_FIELDS = {
    "id": ["", "a/b", "../x", ".hidden", "-x", "a b", "ä", "a\nb", "x" * 129, 7, None],
    "split": ["dev", "Train", "train\n", 1, None],
    "dimension": ["shadow", "", ["physical_shadow"]],
    "original": [
        "", "/etc/passwd", "../data/images/o.jpg", "images/../images/o.jpg", "images", "images/",
        "images/o.png", "gs://bucket/o.jpg", "C:/o.jpg", "images\\o.jpg", "images/o.jpg\0",
        "images/o.jpg\n", 3, None, ["images/o.jpg"],
    ],
    "candidates": [
        [], ["images/a.jpg"], ["images/a.jpg"] * 9, "images/a.jpg", ["images/a.jpg", 2],
        ["images/a.jpg", None], ["images/a.jpg", "images/missing.jpg"],
        ["images/a.jpg", "../a.jpg"], {"A": "images/a.jpg"},
    ],
    "answer": [
        ["E"], ["a"], ["A", "A"], ["AC"], [""], "A", "A,C", None, [1], ["Α"], ["Ａ"], [["A"]],
    ],
    "reasoning": [
        "", " ", 5, ["x"], "<think>x", "so <answer>A", "a</think>", "</answer>", "<|im_end|>",
        "\ud800",
    ],
    "question": ["", 5, {}, "<IMG_CONTEXT>", "<image>", "<img>", "<|im_start|>user"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in BAD_FIELDS.items() for value in values]
)
def test_a_bad_field_is_named_with_file_line_and_fix(folder, field, value):
    path = write(folder, LINE, "", LINE | {"id": "2", "answer": ["A"], field: value})
    message = error_of(path)
    assert message.startswith(f"{path}: line 3: field '{field}'")
    assert ";" in message  # what to do about it


@pytest.mark.parametrize("field", LINE)
def test_a_missing_field(folder, field):
    path = write(folder, {name: value for name, value in LINE.items() if name != field})
    assert error_of(path) == f"{path}: line 1: field '{field}' is missing; add it"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("hello", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        (json.dumps(LINE | {"anwser": []}), 'field "anwser" is unknown'),
        (json.dumps(LINE | {"x\ny": []}), r'field "x\\ny" is unknown'),
        (json.dumps(LINE)[:-1] + ', "split": "test"}', 'field "split" is given twice'),
        (json.dumps(LINE) + json.dumps(LINE), "is not JSON"),
    ],
)
def test_a_line_that_is_no_sample(folder, line, said):
    path = write(folder, line)
    message = error_of(path)
    assert message.startswith(f"{path}: line 1: ")
    assert said.replace("\\\\", "\\") in message


def test_answers_may_name_only_given_options(folder):
    two = LINE | {"candidates": ["images/a.jpg", "images/b.jpg"]}
    assert read_manifest(write(folder, two | {"answer": ["B"]}))[0].answer == ("B",)
    assert "the options are A, B" in error_of(write(folder, two))


def test_duplicate_ids_name_both_lines(folder):
    path = write(folder, LINE, LINE | {"id": "2"}, LINE)
    assert error_of(path) == f"{path}: line 3: field 'id' is '000001' as on line 1; make it unique"


def test_more_bad_lines_are_counted(folder):
    path = write(folder, LINE | {"split": "x"}, LINE, "nonsense", "[]")
    message = error_of(path)
    assert message.startswith(f"{path}: line 1: field 'split'")
    assert message.endswith(" (2 more bad lines)")
    assert error_of(write(folder, "nonsense", LINE, "[]")).endswith(" (1 more bad line)")


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_an_empty_file(folder, content):
    path = folder / "manifest.jsonl"
    path.write_bytes(content)
    assert error_of(str(path)) == f"{path}: has no samples; write one JSON object per line"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark(folder, encoding):
    path = folder / "manifest.jsonl"
    path.write_bytes(json.dumps(LINE).encode(encoding))
    assert "byte order mark; save the file as UTF-8" in error_of(str(path))


def test_other_encodings(folder):
    path = folder / "manifest.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + b'{"id": "\xe4"}\n')
    assert error_of(str(path)) == f"{path}: line 2: byte 9 is not UTF-8; save the file as UTF-8"


def test_windows_line_ends_and_other_line_separators_in_strings(folder):
    path = folder / "manifest.jsonl"
    line = json.dumps(LINE | {"reasoning": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_bytes((line + "\r\n").encode())
    assert read_manifest(str(path))[0].reasoning == "a\u2028b\x85c"


def test_no_file_and_a_folder(folder):
    assert "there is no such manifest" in error_of(str(folder / "x.jsonl"))
    assert "is a folder" in error_of(str(folder))


def test_links_may_not_leave_the_folder(folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "o.jpg").write_bytes(b"secret")
    (folder / "out").symlink_to(outside)
    (folder / "out.jpg").symlink_to(outside / "o.jpg")
    (folder / "dangling.jpg").symlink_to(folder / "nothing")
    for bad in ("out/o.jpg", "out.jpg"):
        assert "is a link out of the manifest's folder" in error_of(
            write(folder, LINE | {"original": bad})
        )
    assert "there is no file" in error_of(write(folder, LINE | {"original": "dangling.jpg"}))
    (folder / "in").symlink_to(folder / "images")
    (folder / "in.jpg").symlink_to(folder / "images" / "o.jpg")
    for good in ("in/o.jpg", "in.jpg"):
        assert read_manifest(write(folder, LINE | {"original": good}))[0].original == good


def test_the_folder_itself_may_be_reached_by_a_link_or_a_relative_path(folder, monkeypatch):
    write(folder, LINE)
    (folder.parent / "link").symlink_to(folder)
    assert read_manifest(str(folder.parent / "link" / "manifest.jsonl"))
    monkeypatch.chdir(folder)
    assert read_manifest("manifest.jsonl")
    monkeypatch.chdir(folder.parent)
    assert read_manifest("data/../data/manifest.jsonl")


def test_files_are_not_looked_for_where_that_is_not_asked(folder):
    path = write(folder, LINE | {"original": "missing.jpg"})
    assert read_manifest(path, check_files=False)[0].original == "missing.jpg"
    with pytest.raises(UserError, match="leaves the manifest's folder"):
        read_manifest(write(folder, LINE | {"original": "../x.jpg"}), check_files=False)


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1
).filter(str.strip)


@st.composite
def samples(draw):
    describes = draw(st.booleans())
    candidates = () if describes else tuple(draw(st.lists(names, min_size=2, max_size=8)))
    optional = texts if describes else st.none() | texts
    passing = st.nothing() if describes else st.sampled_from("ABCDEFGH"[: len(candidates)])
    letters = sorted(draw(st.sets(passing)))
    return Sample(
        id=draw(names),
        split=draw(st.sampled_from(SPLITS)),
        dimension=draw(st.sampled_from(DIMENSIONS)),
        original=draw(names),
        candidates=candidates,
        answer=tuple(letters),
        reasoning=draw(optional),
        question=draw(optional),
    )


@given(st.lists(samples(), min_size=1, max_size=4, unique_by=lambda sample: sample.id))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = str(tmp_path_factory.mktemp("m") / "manifest.jsonl")
    write_manifest(rows, path)
    assert read_manifest(path, check_files=False) == rows
    with open(path, encoding="utf-8") as file:
        written = [json.loads(line).keys() for line in file]
    assert written == [
        {name for name, value in dataclasses.asdict(row).items() if value is not None}
        for row in rows
    ]
