"""Checksums of a checkpoint: written into it before it gets its final name, compared before it is read.

`checksums.txt` is in the form that `b2sum --check` reads, run inside the checkpoint. It names every file that decides what is
restored, those of the run that all its checkpoints share (`../../model.json`) too. Its last line, a comment, is the checksum of
those before it.
"""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from aesthetic_jax.errors import UserError

_NAME = "checksums.txt"
_IGNORED = {_NAME, "_CHECKPOINT_METADATA", "commit_success.txt"}  # Orbax writes these, times, once more behind us
_SHARED = "../../"


def write_checksums(checkpoint: epath.Path) -> None:
    """Writes `checksums.txt` into a checkpoint whose files are all there; its own name may be a temporary one."""
    run = checkpoint.parent.parent
    shared = [run / "model.json", *_files(run / "tokenizer")]
    names = [name for x in _files(checkpoint) if (name := str(x.relative_to(checkpoint))) not in _IGNORED]
    names += [_SHARED + str(x.relative_to(run)) for x in shared if x.exists()]
    names.sort()
    lines = [f"{digest}  {name}\n" for name, digest in zip(names, _digests(checkpoint, names), strict=True)]
    body = "".join(lines)
    (checkpoint / _NAME).write_text(f"{body}# {_digest_of(body)}\n")  # torn, it does not match its own last line


def find_damage(checkpoint: epath.Path, item: str = "") -> str | None:
    """What is wrong with a checkpoint, in a few words; None: it is as it was written.

    Args:
        item: look at this part of it alone, such as "parameters"; "": all.

    Raises:
        UserError: the checkpoint is whole, but a file of the run that it goes with has been changed.
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
    expected = {name: digest for digest, name in (line.split("  ", 1) for line in body.decode().splitlines())}
    names = [name for name in expected if name.startswith((f"{item}/" if item else "", _SHARED))]
    changed = [
        name
        for name, digest in zip(names, _digests(checkpoint, names), strict=True)
        if digest is None or digest != expected[name]
    ]
    own = [name for name in changed if not name.startswith(_SHARED)]
    if own:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        return f"{own[0]} is damaged or missing{more}"
    if changed:
        file = checkpoint.parent.parent / changed[0].removeprefix(_SHARED)
        raise UserError(f"{file}: is damaged or missing; restore the file that the run wrote")
    return None


def _files(folder: epath.Path) -> list[epath.Path]:
    if not folder.exists():
        return []
    return [file for x in folder.iterdir() for file in (_files(x) if x.is_dir() else [x])]


def _digests(checkpoint: epath.Path, names: Iterable[str]) -> list[str | None]:
    """BLAKE2b of files, by the names that `checksums.txt` has for them; None where one can't be read."""
    run = checkpoint.parent.parent

    def digest(name: str) -> str | None:
        file = run / name.removeprefix(_SHARED) if name.startswith(_SHARED) else checkpoint / name
        hashed = hashlib.blake2b()
        try:
            with file.open("rb") as content:
                while block := content.read(1 << 22):
                    hashed.update(block)
        except OSError:
            return None
        return hashed.hexdigest()

    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(digest, names))


def _digest_of(text: str | bytes) -> str:
    return hashlib.blake2b(text.encode() if isinstance(text, str) else text).hexdigest()
