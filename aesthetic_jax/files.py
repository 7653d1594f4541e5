"""Files that are there whole or not at all."""

from etils import epath


def write_whole(file: epath.Path, content: str | bytes) -> None:
    """Writes a file under another name and then gives it its own, which on a disk happens at once."""
    partial = file.parent / f"{file.name}.partial"
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(file)
