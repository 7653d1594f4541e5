"""Checksums of a run's checkpoints: written before a checkpoint is published, compared before use.

`checksums.txt` has the format that `b2sum --check` reads inside the checkpoint. It lists every file
that determines what is restored, including those that all checkpoints of the run share
(`../../model.json` and the tokenizer). Its last line, a comment, is the checksum of the lines
above.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from aesthetic_jax.errors import UserError

_NAME = "checksums.txt"
# Orbax rewrites these two files, which hold times, after the checksums are taken.
_IGNORED = {_NAME, "_CHECKPOINT_METADATA", "commit_success.txt"}
_SHARED = "../../"
_BLOCK_BYTES = 1 << 22
_THREADS = 8  # hashing releases the interpreter's lock


def write_checksums(checkpoint: epath.Path) -> None:
    """Writes `checksums.txt` into a checkpoint, which may still have its temporary name.

    All its files must exist.
    """
    run = checkpoint.parent.parent
    own = [str(file.relative_to(checkpoint)) for file in _files(checkpoint)]
    shared = [run / "model.json", *_files(run / "tokenizer")]
    names = [name for name in own if name not in _IGNORED]
    names += [_SHARED + str(file.relative_to(run)) for file in shared if file.exists()]
    names.sort()
    digests = _digests(checkpoint, names)
    body = "".join(f"{digest}  {name}\n" for name, digest in zip(names, digests, strict=True))
    (checkpoint / _NAME).write_text(f"{body}# {_digest_of(body)}\n")


def find_damage(checkpoint: epath.Path, item: str = "") -> str | None:
    """Describes how a checkpoint is damaged; None: it is intact.

    Args:
        checkpoint: directory of the checkpoint.
        item: check only this part, such as "parameters"; "": everything.

    Raises:
        UserError: the checkpoint is intact, but a file of the run that it needs has changed.
    """
    try:
        content = (checkpoint / _NAME).read_bytes()
    except FileNotFoundError:
        return f"has no {_NAME}"
    except OSError as error:
        return f"{_NAME} can't be read ({error.strerror or error})"
    body, mark, last = content.rpartition(b"# ")
    if not mark or last != f"{_digest_of(body)}\n".encode():
        return f"{_NAME} is damaged"
    expected = {}
    for line in body.decode().splitlines():
        digest, name = line.split("  ", 1)
        if name.startswith((f"{item}/" if item else "", _SHARED)):
            expected[name] = digest
    found = _digests(checkpoint, expected)
    changed = [
        name for name, digest in zip(expected, found, strict=True) if digest != expected[name]
    ]
    if own := [name for name in changed if not name.startswith(_SHARED)]:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        return f"{own[0]} is damaged or missing{more}"
    if changed:
        file = checkpoint.parent.parent / changed[0].removeprefix(_SHARED)
        raise UserError(f"{file}: is damaged or missing; restore the file that the run wrote")
    return None


def _files(folder: epath.Path) -> list[epath.Path]:
    """All files in a folder and its subfolders."""
    if not folder.exists():
        return []
    return [file for x in folder.iterdir() for file in (_files(x) if x.is_dir() else [x])]


def _digests(checkpoint: epath.Path, names: Iterable[str]) -> list[str | None]:
    """BLAKE2b of files by their names in `checksums.txt`; None for a file that can't be read."""
    run = checkpoint.parent.parent

    def digest(name: str) -> str | None:
        file = run / name.removeprefix(_SHARED) if name.startswith(_SHARED) else checkpoint / name
        hasher = hashlib.blake2b()
        try:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK_BYTES):
                    hasher.update(block)
        except OSError:
            return None
        return hasher.hexdigest()

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(digest, names))


def _digest_of(text: str | bytes) -> str:
    return hashlib.blake2b(text.encode() if isinstance(text, str) else text).hexdigest()
