"""Atomic file writes, on disks and in object stores."""

from etils import epath


def in_object_store(path: epath.PathLike) -> bool:
    """Whether a path is a URL such as gs://, where no file can be appended to or folder renamed."""
    return "://" in str(path)


def write_whole(file: epath.Path, content: str | bytes) -> None:
    """Writes FILE.partial, then renames it to FILE: a reader never sees half a file on a disk."""
    partial = file.parent / f"{file.name}.partial"
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)
