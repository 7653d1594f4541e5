"""The manifest: a JSON Lines file with one sample per line and image paths relative to the file.

Reading checks every field of every line, and that the images exist inside the manifest's folder.
"""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from aesthetic_jax.data.answers import LETTERS, option_letters
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import in_object_store

DIMENSIONS = (
    "appearance_deformation",
    "physical_shadow",
    "placement_layout",
    "extension_rationality",
)
SPLITS = ("train", "validation", "test")
_REQUIRED = {
    "id": str,
    "split": str,
    "dimension": str,
    "original": str,
    "candidates": list,
    "answer": list,
}
_OPTIONAL = {"reasoning": str, "question": str}
_KIND_NAMES = {str: "a string", list: "a list of strings"}
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_RESERVED = re.compile(r"</?(think|answer|img)>|<image>|<IMG_CONTEXT>|<\|\w+\|>")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    Attributes:
        id: unique name; letters, digits, "_", "-" and ".".
        split: one of SPLITS.
        dimension: one of DIMENSIONS.
        original: path of the original photo, relative to the manifest.
        candidates: paths of 2 to 8 candidates, option A first. Empty: the sample is a description
            of its only image, with a question and reasoning of its own.
        answer: sorted letters of the candidates that pass the dimension; may be empty.
        reasoning: chain of thought without tags, or None.
        question: replaces the dimension's question, or None.
    """

    id: str
    split: str
    dimension: str
    original: str
    candidates: tuple[str, ...]
    answer: tuple[str, ...]
    reasoning: str | None = None
    question: str | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """Paths of all images, the original first."""
        return (self.original, *self.candidates)


def image_role(position: int) -> str:
    """The name of a sample's image: "original" for position 0, then the candidates' letters."""
    return LETTERS[position - 1] if position else "original"


def read_manifest(path: str, check_files: bool = True) -> list[Sample]:
    """Reads all samples of a manifest in file order; blank lines are skipped.

    Args:
        path: the file; may be `gs://`.
        check_files: whether to check that each image is a file inside the manifest's folder, also
            after links are resolved.

    Raises:
        UserError: names the file, the first bad line, its field and the fix, and counts the other
            bad lines.
    """
    samples, first_line, errors = [], {}, []
    check_image = _image_check(epath.Path(path).parent) if check_files else None
    # Only "\n" ends a line: a JSON string may hold other line separators.
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            sample = _parse(line)
            if first_line.setdefault(sample.id, number) != number:
                raise ValueError(
                    f"field 'id' is '{sample.id}' as on line {first_line[sample.id]}; "
                    "make it unique"
                )
            if check_image is not None:
                check_image("original", sample.original)
                for image in sample.candidates:
                    check_image("candidates", image)
            samples.append(sample)
        except ValueError as error:
            errors.append(f"{path}: line {number}: {error}")
    if errors:
        more = len(errors) - 1
        raise UserError(errors[0] + (f" ({more} more bad line{'s' * (more > 1)})" if more else ""))
    if not samples:
        raise UserError(f"{path}: has no samples; write one JSON object per line")
    return samples


def write_manifest(samples: Iterable[Sample], path: str) -> None:
    """Writes one sample per line, without the fields that are None.

    Args:
        samples: their image paths are relative to the manifest's folder.
        path: the file; may be `gs://`.
    """
    rows = (
        {name: x for name, x in dataclasses.asdict(sample).items() if x is not None}
        for sample in samples
    )
    epath.Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(path: str) -> bytes:
    try:
        data = epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such manifest; correct the path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the manifest.jsonl in it") from None
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{path}: line 1: starts with a byte order mark; save the file as UTF-8 without one"
        )
    return data


def parse_object(line: bytes) -> dict[str, Any]:
    """Parses one line of a JSON Lines file.

    Raises:
        ValueError: it isn't a JSON object with unique fields; with the fault and the fix.
    """
    try:
        fields = json.loads(line.decode(), object_pairs_hook=_unique_fields)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"is not JSON ({error.msg} at column {error.colno}); write one JSON object per line"
        ) from None
    except RecursionError:
        raise ValueError("is nested too deeply; write one flat JSON object per line") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object; write one object per line")
    return fields


def _parse(line: bytes) -> Sample:
    """Parses one line.

    Raises:
        ValueError: with the field, the fault and the fix.
    """
    fields = parse_object(line)
    _check_types(fields)
    _check_values(fields)
    candidates, answer = tuple(fields.pop("candidates")), tuple(sorted(fields.pop("answer")))
    return Sample(candidates=candidates, answer=answer, **fields)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {_quote(twice)} is given twice; keep one")
    return fields


def _check_types(fields: dict[str, Any]) -> None:
    if missing := [name for name in _REQUIRED if name not in fields]:
        raise ValueError(f"field '{missing[0]}' is missing; add it")
    known = _REQUIRED | _OPTIONAL
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(
            f"field {_quote(unknown[0])} is unknown; "
            f"remove it, or rename it to one of {', '.join(known)}"
        )
    for name, value in fields.items():
        if value is None and name in _OPTIONAL:
            continue
        kind = known[name]
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"field '{name}' is {_quote(value)}; give {_KIND_NAMES[kind]}")
        if any(_SURROGATE.search(text) for text in texts):
            raise ValueError(
                f"field '{name}' has half of a surrogate pair; write the character in UTF-8"
            )


def _check_values(fields: dict[str, Any]) -> None:
    if not _SAFE_ID.fullmatch(fields["id"]):
        raise ValueError(
            f"field 'id' is {_quote(fields['id'])}; use 1 to 128 letters, digits, '_', '-' or '.', "
            "not starting with '-' or '.'"
        )
    for name, allowed in (("split", SPLITS), ("dimension", DIMENSIONS)):
        if fields[name] not in allowed:
            raise ValueError(
                f"field '{name}' is {_quote(fields[name])}; choose from {', '.join(allowed)}"
            )
    _check_options(fields)
    for name in _OPTIONAL:
        text = fields.get(name)
        if text is not None and not text.strip():
            raise ValueError(f"field '{name}' is empty; write a text, or leave the field out")
        if found := _RESERVED.search(text or ""):
            raise ValueError(
                f"field '{name}' contains '{found.group()}', which the prompt format reserves; "
                "remove it"
            )
    _check_path("original", fields["original"])
    for path in fields["candidates"]:
        _check_path("candidates", path)


def _check_options(fields: dict[str, Any]) -> None:
    """Checks the number of candidates, and that the answer names some of them."""
    # A description has a question and reasoning of its own, and no candidates to choose from.
    is_description = bool(fields.get("question") and fields.get("reasoning"))
    num_candidates = len(fields["candidates"])
    if not 2 <= num_candidates <= len(LETTERS) and (num_candidates or not is_description):
        mend = f"give 2 to {len(LETTERS)}"
        if not num_candidates:
            mend += ", or none in a description, which has a question and a reasoning"
        raise ValueError(f"field 'candidates' has {num_candidates} images; {mend}")
    options = option_letters(num_candidates)
    for letter in fields["answer"]:
        if not options:
            raise ValueError(
                f"field 'answer' has {_quote(letter)}; there are no candidates, so give []"
            )
        if len(letter) != 1 or letter not in options:
            raise ValueError(
                f"field 'answer' has {_quote(letter)}; the options are {', '.join(options)}"
            )
        if fields["answer"].count(letter) > 1:
            raise ValueError(f"field 'answer' repeats '{letter}'; give each letter once")


def _check_path(field: str, path: str) -> None:
    parts = path.split("/")
    if not path.isprintable() or not path or "\\" in path or path.endswith("/"):
        raise ValueError(
            f"field '{field}': {_quote(path)} is not a file path; write a relative path with '/'"
        )
    if parts[0] == "" or ".." in parts or ":" in parts[0]:
        raise ValueError(
            f"field '{field}': {_quote(path)} leaves the manifest's folder; "
            "put the image inside and give its relative path"
        )


def _image_check(folder: epath.Path) -> Callable[[str, str], None]:
    """Makes a check (field, image) that raises ValueError unless the image is in the folder.

    Links are resolved. Each folder is listed once: one request per image would be slow in object
    stores.
    """
    root = epath.Path(_real_path(folder))
    listings: dict[str, dict[str, bool]] = {}

    def check(field: str, image: str) -> None:
        parent, _, name = image.rpartition("/")
        if parent not in listings:
            listings[parent] = _list_files(root / parent)
        is_link = listings[parent].get(name)
        if is_link is None:
            raise ValueError(
                f"field '{field}': there is no file {_quote(image)}; add it or correct the path"
            )
        if is_link and not epath.Path(_real_path(root / image)).is_relative_to(root):
            raise ValueError(
                f"field '{field}': {_quote(image)} is a link out of the manifest's folder; "
                "copy the image into it"
            )

    return check


def _real_path(path: epath.Path) -> str:
    """A path with its links resolved (epath's resolve() doesn't); unchanged for URLs."""
    return str(path) if in_object_store(path) else os.path.realpath(path)


def _list_files(folder: epath.Path) -> dict[str, bool]:
    """{name: whether a link leads to it} of a folder's files; empty if there is no such folder."""
    try:
        if in_object_store(folder):
            return {file.name: False for file in folder.iterdir()}
        linked = _real_path(folder) != str(folder)
        with os.scandir(folder) as entries:
            return {
                entry.name: linked or entry.is_symlink() for entry in entries if entry.is_file()
            }
    except OSError:
        return {}


def _quote(value: Any) -> str:
    """A value as JSON, shortened to 60 characters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
