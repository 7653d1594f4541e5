"""Reads scenes.jsonl: what each image of a synthetic sample shows, for evaluation alone.

One JSON object per line, {"id", "images": {"original": IMAGE, "A": IMAGE, ...}}, with IMAGE =
{"kind", "body", "label", "cap", "light", "flaws": [{"name", "strength", "breaks"}, ...]}. The file
stands beside the manifest, or in the built data set. Neither prompts nor training read it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from etils import epath

from aesthetic_jax.data.answers import LETTERS
from aesthetic_jax.data.manifest import DIMENSIONS, image_role, parse_object
from aesthetic_jax.data.scenes.flaws import BREAKS
from aesthetic_jax.data.scenes.products import COLOURS
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import write_whole

SCENES = "scenes.jsonl"
_IMAGE_FIELDS = {"kind", "body", "label", "cap", "light", "flaws"}
_FLAW_FIELDS = {"name", "strength", "breaks"}
_LISTED_COLOURS = ", ".join(COLOURS)


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What one image shows, or what a chain of thought says that it shows.

    Attributes:
        kind: noun for the product; None where a chain doesn't say.
        body: colour of the body in this image; None where it has no name, or isn't stated.
        label: colour of the label, likewise.
        cap: colour of the cap, likewise; None also where the cap is missing.
        light: side that the light comes from, "left" or "right"; None where a chain doesn't say.
        flaws: names of the image's flaws.
    """

    kind: str | None = None
    body: str | None = None
    label: str | None = None
    cap: str | None = None
    light: str | None = None
    flaws: frozenset[str] = frozenset()


Scenes = Mapping[str, Mapping[str, ImageFacts]]  # {sample's id: {"original" or letter: facts}}


def find_scenes(folder: str, ids: Collection[str]) -> Scenes | None:
    """What `read_scenes` reads from a folder's scenes.jsonl; None if it has none."""
    path = epath.Path(folder) / SCENES
    return read_scenes(str(path), ids) if path.exists() else None


def read_scenes(path: str, ids: Collection[str]) -> Scenes:
    """Checks all lines of a scenes.jsonl and returns the facts of some samples.

    Args:
        path: the file; may be `gs://`.
        ids: ids of the samples to return; the file may hold more.

    Raises:
        UserError: the file can't be read, a line is malformed (names the first), or a sample is
            missing.
    """
    try:
        lines = epath.Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: can't be read ({error.strerror or error}); mend or remove it"
        ) from None
    wanted, first_line = set(ids), {}
    scenes: dict[str, dict[str, ImageFacts]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, images = _parse_line(line)
            if first_line.setdefault(name, number) != number:
                raise ValueError(f"has the 'id' of line {first_line[name]}; keep one of them")
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        if name in wanted:
            scenes[name] = images
    if missing := [name for name in ids if name not in scenes]:
        raise UserError(
            f"{path}: lacks {len(missing)} of {len(ids)} samples, the first is {missing[0]}; "
            "restore the whole file, or remove it"
        )
    return scenes


def scenes_bytes(folder: str) -> bytes | None:
    """The content of a folder's scenes.jsonl; None if it has none."""
    file = epath.Path(folder) / SCENES
    return file.read_bytes() if file.exists() else None


def copy_scenes(source: str, target: str) -> None:
    """Copies a folder's scenes.jsonl to another folder; if it has none, removes the other's.

    Args:
        source: folder to copy from.
        target: folder to copy to.
    """
    content, copy = scenes_bytes(source), epath.Path(target) / SCENES
    if content is None:
        copy.unlink(missing_ok=True)
    else:
        write_whole(copy, content)


def _parse_line(line: bytes) -> tuple[str, dict[str, ImageFacts]]:
    """A sample's id and images.

    Raises:
        ValueError: with the fault and the fix.
    """
    fields = parse_object(line)
    _check_fields("the line", fields, {"id", "images"})
    name, images = fields["id"], fields["images"]
    if not isinstance(name, str):
        raise ValueError("field 'id' is no string; give the sample's id in the manifest")
    roles = [image_role(position) for position in range(1 + len(LETTERS))]
    if not isinstance(images, dict) or not images or set(images) != set(roles[: len(images)]):
        raise ValueError("field 'images' must have the keys original, A, B and so on; mend them")
    return name, {role: _parse_image(role, images[role]) for role in images}


def _parse_image(role: str, image: Any) -> ImageFacts:
    _check_fields(f"image '{role}'", image, _IMAGE_FIELDS)
    if not isinstance(image["kind"], str):
        raise ValueError(f"image '{role}': field 'kind' is no string; give the product's noun")
    for field in ("body", "label", "cap"):
        colour = image[field]
        if colour is not None and not (isinstance(colour, str) and colour in COLOURS):
            raise ValueError(
                f"image '{role}': field '{field}' is no colour; give null or one of "
                f"{_LISTED_COLOURS}"
            )
    if image["light"] not in ("left", "right"):
        raise ValueError(f"image '{role}': field 'light' must be left or right; give one of them")
    if not isinstance(image["flaws"], list):
        raise ValueError(f"image '{role}': field 'flaws' is no list; give one, [] for no flaw")
    flaws = frozenset(_parse_flaw(role, flaw) for flaw in image["flaws"])
    return ImageFacts(**(image | {"flaws": flaws}))


def _parse_flaw(role: str, flaw: Any) -> str:
    """The name of a flaw, whose other fields are checked too."""
    where = f"a flaw of image '{role}'"
    _check_fields(where, flaw, _FLAW_FIELDS)
    if flaw["name"] not in BREAKS:
        raise ValueError(f"{where}: field 'name' must be one of {', '.join(BREAKS)}; mend it")
    strength = flaw["strength"]
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool)
    if not (is_number and 0 < strength <= 1):
        raise ValueError(f"{where}: field 'strength' must be above 0 and at most 1; mend it")
    breaks = flaw["breaks"]
    if not isinstance(breaks, list) or not all(x in DIMENSIONS for x in breaks):
        raise ValueError(f"{where}: field 'breaks' must list some of {', '.join(DIMENSIONS)}")
    return flaw["name"]


def _check_fields(where: str, value: Any, names: set[str]) -> None:
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError(f"{where} must have exactly the fields {', '.join(sorted(names))}")
