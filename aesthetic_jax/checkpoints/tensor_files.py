"""Safetensors files: checks a header, reads tensors one at a time, writes a file as a stream.

Format: 8 bytes with the header's length, a JSON header {name: {dtype, shape, data_offsets}}, then
the tensors' bytes. The safetensors library maps whole files into memory and writes only what it
holds all at once. Plain reads keep the import of a 2B model within its memory limit, and work on
every path that epath opens, gs:// included.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import IO, Any

import ml_dtypes
import numpy as np
from etils import epath

from aesthetic_jax.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"  # a checkpoint's files

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor is stored.

    Attributes:
        file: the file that holds it.
        dtype: safetensors' name for its type; may be missing from DTYPES, as integers are.
        shape: as stored.
        start: offset of its first byte in the file.
        size: number of its bytes.
    """

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Rows [start, stop), which are contiguous in the file."""
        row = self.size // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return dataclasses.replace(
            self, shape=shape, start=self.start + start * row, size=(stop - start) * row
        )

    def third(self, index: int) -> "StoredTensor":
        """One third of its rows: the query, key or value of a fused projection."""
        third = self.shape[0] // 3
        return self.rows(index * third, (index + 1) * third)


def read_header(file: epath.Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a file by name, without reading their bytes.

    Raises:
        UserError: the file is missing, truncated or not a safetensors file.
    """
    if not file.exists():
        raise UserError(f"{file}: is missing; copy the checkpoint again")
    length = file.stat().length
    try:
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            if length < 8 or header_size > min(length - 8, _MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(header_size))
        header.pop("__metadata__", None)
        tensors, end = {}, 8 + header_size
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensors[name] = _parse_entry(file, name, entry, 8 + header_size)
            if tensors[name].start != end:
                raise ValueError(f"tensor {name} does not begin where the one before it ends")
            end += tensors[name].size
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: is damaged, or no safetensors file ({error}); copy the checkpoint again"
        ) from None
    if length != end:
        raise UserError(
            f"{file}: has {length} bytes, its header promises {end}; copy the checkpoint again"
        )
    return tensors


def _parse_entry(
    file: epath.Path, name: str, entry: dict[str, Any], data_start: int
) -> StoredTensor:
    """Checks one entry of a header; raises ValueError, KeyError or TypeError if it is wrong."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if end < begin or any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"tensor {name} has a negative size")
    dtype = DTYPES.get(entry["dtype"])
    if dtype is not None and end - begin != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"tensor {name} has more or fewer bytes than its shape needs")
    return StoredTensor(file, entry["dtype"], shape, data_start + begin, end - begin)


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """Reads one tensor in its stored type and shape; the array is read-only."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        data = stream.read(tensor.size)
    return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)


def write_header(
    stream: IO[bytes], tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]]
) -> None:
    """Writes the header; the caller then writes the tensors' bytes in this order, C-contiguous."""
    # transformers refuses files that don't say "pt".
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + dtype.itemsize * int(np.prod(shape))
        header[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8 bytes
    stream.write(len(text).to_bytes(8, "little") + text)
