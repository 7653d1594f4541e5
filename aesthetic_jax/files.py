"""Files that are there whole or not at all, on disks and in object stores."""

from etils import epath


def in_object_store(path: epath.PathLike) -> bool:
    """Whether a path is a URL, such as gs://: nothing there can be appended to, and no folder renamed."""
    return "://" in str(path)


def write_whole(file: epath.Path, content: str | bytes) -> None:
    """Writes a file under another name and then gives it its own, which on a disk happens at once."""
    partial = file.parent / f"{file.name}.partial"
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)
