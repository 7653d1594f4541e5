"""Answers a split into a folder batch by batch, so that an interrupted command resumes.

While a folder is unfinished, each batch is a file in `parts/`: an object store can't append. A JSON
file with the settings claims the folder; other settings are refused. Noise is keyed by the sample,
so a resumed folder ends up identical to an uninterrupted one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Int

from aesthetic_jax.data.records import Records
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import write_whole
from aesthetic_jax.models.internvl import Parameters
from aesthetic_jax.training.sampling import Sampler, num_batches, sample_records

Row = dict[str, Any]


class Answering(NamedTuple):
    """A split to answer, the sampler, and the output folder."""

    sampler: Sampler
    records: Records
    ids: Sequence[str]  # ids of the records to answer
    folder: epath.Path
    title: str  # of the progress bar
    indices: Int[np.ndarray, " R"] | None = None  # indices of these records; None: the first ones

    @property
    def parts(self) -> list[epath.Path]:
        """The file of each batch."""
        numbers = range(num_batches(self.sampler, len(self.ids)))
        return [self.folder / "parts" / f"{number:06d}.jsonl" for number in numbers]


def describe_samples(ids: Sequence[str]) -> dict[str, Any]:
    """Settings that identify a set of samples."""
    digest = hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest()
    return {"samples": len(ids), "samples_blake2b": digest}


def claim_folder(
    file: epath.Path, settings: dict[str, Any], outputs: Sequence[str], made: str
) -> None:
    """Writes the settings of a folder's content, on process 0 only.

    Args:
        file: the folder's JSON file.
        outputs: files that will be written beside it.
        made: what was done in the folder, for messages: "mined" or "answered".

    Raises:
        UserError: the folder holds something else, or results of other settings.
    """
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        if taken := [name for name in outputs if (folder / name).exists()]:
            raise UserError(
                f"{folder / taken[0]}: exists already; remove it or name another folder"
            )
        write_json(file, {"settings": settings})
        return
    try:
        before = json.loads(file.read_text())["settings"]
        changed = [name for name in settings if before.get(name) != settings[name]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: can't be read; remove {folder} to start anew") from None
    if changed:
        name = changed[0]
        raise UserError(
            f"{file}: was {made} with {name} {before.get(name)!r}, not {settings[name]!r}; "
            f"remove {folder} or name another"
        )


def answer_split(
    work: Answering,
    parameters: Parameters,
    finish_row: Callable[[Row], Row],
    collect: Callable[[Row], None],
    should_stop: Callable[[], bool],
) -> bool:
    """Answers the missing batches and writes each one when it is done.

    Args:
        finish_row: makes the stored row of a row of `sample_records`.
        collect: called with every stored row in order, on every host.
        should_stop: from `preemption_guard`; called after each batch but the last.

    Returns:
        Whether all records are answered; False: it stopped early, and the same call resumes.
    """
    size, ids, parts = work.sampler.batch_size, work.ids, work.parts
    batch_ids = [ids[start : start + size] for start in range(0, len(ids), size)]
    finished = 0
    for part, expected in zip(parts, batch_ids, strict=True):
        rows = _read_rows(part, expected)
        if rows is None:
            break
        for row in rows:
            collect(row)
        finished += 1
    batches = sample_records(
        work.sampler,
        parameters,
        work.records,
        work.ids,
        indices=work.indices,
        first_batch=finished,
        title=work.title,
    )
    for part, batch in zip(parts[finished:], batches, strict=True):
        rows = [finish_row(row) for row in batch]
        for row in rows:
            collect(row)
        if jax.process_index() == 0:
            part.parent.mkdir(exist_ok=True)
            write_whole(part, "".join(json.dumps(row) + "\n" for row in rows))
        if part != parts[-1] and should_stop():
            return False
    return True


def join_parts(work: Answering, name: str, fields: Iterable[str]) -> None:
    """Writes all rows to one file, in order, with these fields; `remove_parts` then cleans up."""
    fields = tuple(fields)
    partial = work.folder / f"{name}.partial"
    with partial.open("w") as joined:
        for part in work.parts:
            for line in part.read_text().splitlines():
                row = json.loads(line)
                joined.write(json.dumps({field: row[field] for field in fields}) + "\n")
    partial.replace(work.folder / name)


def remove_parts(folder: epath.Path) -> None:
    """Removes the batches' files, once `join_parts` has joined them."""
    if (folder / "parts").exists():
        (folder / "parts").rmtree()


def write_json(file: epath.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file atomically."""
    write_whole(file, json.dumps(content, indent=2) + "\n")


def _read_rows(part: epath.Path, ids: Sequence[str]) -> list[Row] | None:
    """The rows of one batch; None if its file is missing or incomplete."""
    try:
        rows = [json.loads(line) for line in part.read_text().splitlines()]
        return rows if [row["id"] for row in rows] == list(ids) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
