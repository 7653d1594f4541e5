"""The manifest: JSON lines, one sample a line, image paths relative to the file. Reading checks everything."""

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from etils import epath

from aesthetic_jax.errors import UserError

DIMENSIONS = ("appearance_deformation", "physical_shadow", "placement_layout", "extension_rationality")
SPLITS = ("train", "validation", "test")
_OPTIONS = "ABCDEFGH"
_REQUIRED = {"id": str, "split": str, "dimension": str, "original": str, "candidates": list, "answer": list}
_OPTIONAL = {"reasoning": str, "question": str}
_RESERVED = re.compile(r"</?(think|answer|img)>|<image>|<IMG_CONTEXT>|<\|\w+\|>")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One line of a manifest.

    Attributes:
        original: path of the original photo, relative to the manifest.
        candidates: paths of 2 to 8 candidates, option A first.
        answer: letters of the candidates that pass the dimension; may be empty.
        reasoning: chain of thought, without tags.
        question: replaces the dimension's question.
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


def _parse(line: str) -> Sample:
    """One line's sample; ValueError says what is wrong, beginning with the field."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at column {error.colno}); write one JSON object a line") from None
    if not isinstance(fields, dict):
        raise ValueError("is no JSON object; write one object a line")
    if missing := _REQUIRED.keys() - fields.keys():
        raise ValueError(f"field '{min(missing)}' is missing; add it")
    if unknown := fields.keys() - _REQUIRED.keys() - _OPTIONAL.keys():
        raise ValueError(f"field '{min(unknown)}' is unknown; remove or rename it")
    for name, value in fields.items():
        kind = (_REQUIRED | _OPTIONAL)[name]
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, kind) or (kind is list and not all(isinstance(x, str) for x in value)):
            wanted = "a list of strings" if kind is list else "a string"
            raise ValueError(f"field '{name}' is {json.dumps(value)[:60]}; give {wanted}")
    if not fields["id"] or not fields["id"].isprintable():
        raise ValueError("field 'id' is empty or has unprintable characters; give each sample a plain name")
    for name, allowed in (("split", SPLITS), ("dimension", DIMENSIONS)):
        if fields[name] not in allowed:
            raise ValueError(f"field '{name}' is '{fields[name]}'; choose from {', '.join(allowed)}")
    if not 2 <= len(fields["candidates"]) <= len(_OPTIONS):
        raise ValueError(f"field 'candidates' has {len(fields['candidates'])} images; give 2 to {len(_OPTIONS)}")
    options = _OPTIONS[: len(fields["candidates"])]
    for letter in fields["answer"]:
        if len(letter) != 1 or letter not in options:
            raise ValueError(f"field 'answer' has '{letter}'; the options are {', '.join(options)}")
    if len(set(fields["answer"])) != len(fields["answer"]):
        raise ValueError("field 'answer' repeats a letter; name each once")
    for name in _OPTIONAL:
        if found := _RESERVED.search(fields.get(name) or ""):
            raise ValueError(f"field '{name}' contains '{found.group()}', which has a meaning of its own; remove it")
    for path in (fields["original"], *fields["candidates"]):
        parts = path.split("/")
        if not path or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path or ":" in parts[0]:
            raise ValueError(f"image path '{path}' leaves the manifest's folder; give a relative path inside it")
    candidates, answer = tuple(fields.pop("candidates")), tuple(sorted(fields.pop("answer")))
    return Sample(candidates=candidates, answer=answer, **fields)


def read_manifest(path: str) -> list[Sample]:
    """All samples of a manifest, in its order.

    Raises:
        UserError: names the file, the first bad line, its field and the mend. Missing images, and links that lead out of the
            manifest's folder, count as bad lines.
    """
    file = epath.Path(path)
    try:
        lines = file.read_bytes().decode("utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such manifest") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name the manifest.jsonl in it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    folder = file.parent
    root = folder.resolve()
    samples, first_line, listings = [], {}, {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            sample = _parse(line)
            if sample.id in first_line:
                raise ValueError(f"field 'id' is '{sample.id}', as on line {first_line[sample.id]}; make it unique")
            for image in sample.images:
                _check_image(root, image, listings)
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        first_line[sample.id] = number
        samples.append(sample)
    if not samples:
        raise UserError(f"{path}: holds no samples; write one JSON object a line")
    return samples


def _check_image(root: epath.Path, image: str, listings: dict[Any, set[str]]) -> None:
    """Whether an image is in its folder; folders are listed once, which is what makes object stores bearable."""
    file = root / image
    if file.parent not in listings:
        inside = file.parent.resolve() == file.parent
        listings[file.parent] = {x.name for x in file.parent.iterdir()} if inside and file.parent.exists() else set()
    if file.name not in listings[file.parent]:
        raise ValueError(f"there is no image '{image}' in the manifest's folder; add it or mend the path")
    if file.resolve() != file:
        raise ValueError(f"image '{image}' is a link out of the manifest's folder; copy the image there")


def write_manifest(samples: Iterable[Sample], path: str) -> None:
    """Writes samples one a line, fields without a value left out."""
    rows = ({name: x for name, x in dataclasses.asdict(sample).items() if x is not None} for sample in samples)
    epath.Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
