"""Safetensors files: a checked header, tensors read one at a time, a file written as a stream.

The format: 8 bytes with the header's length, a JSON header {name: {dtype, shape, data_offsets}}, the tensors' bytes.
The safetensors library maps whole files into memory, and writes only what it holds all at once; plain reads keep a 2B
import within its memory limit, and work on any path that epath opens, gs:// included.
"""

import dataclasses
import json
from collections.abc import Iterable
from typing import BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from aesthetic_jax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies.

    Attributes:
        file: the file that holds it.
        dtype: safetensors' name of its type, not always one of DTYPES (integers are listed too).
        shape: as stored.
        start: offset of its first byte in the file.
        size: its bytes.
    """

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Some of its rows, which lie together in the file."""
        row = self.size // self.shape[0]
        shape = (stop - start, *self.shape[1:])
        return dataclasses.replace(self, shape=shape, start=self.start + start * row, size=(stop - start) * row)

    def third(self, index: int) -> "StoredTensor":
        """One third of its rows: the query, key or value of a fused projection."""
        third = self.shape[0] // 3
        return self.rows(index * third, (index + 1) * third)


def read_header(file: epath.Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, without reading their bytes.

    Raises:
        UserError: the file is missing, cut short, or no safetensors file.
    """
    if not file.exists():
        raise UserError(f"{file}: is missing; copy the checkpoint again")
    length = file.stat().length
    try:
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            if length < 8 or header_size > min(length - 8, _HEADER_LIMIT):
                raise ValueError("the header is longer than the file")
            header = json.loads(stream.read(header_size))
        header.pop("__metadata__", None)
        data = 8 + header_size
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if start != end or stop < start or any(not isinstance(n, int) or n < 0 for n in shape):
                raise ValueError(f"tensor {name} lies outside its place")
            if entry["dtype"] in DTYPES and stop - start != DTYPES[entry["dtype"]].itemsize * int(np.prod(shape)):
                raise ValueError(f"tensor {name} has another size than its shape")
            tensors[name] = StoredTensor(file, entry["dtype"], shape, data + start, stop - start)
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is no whole safetensors file ({error}); copy the checkpoint again") from None
    if length != data + end:
        raise UserError(f"{file}: has {length} bytes, its header promises {data + end}; copy the checkpoint again")
    return tensors


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """One tensor, in its stored type and shape; read-only."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        data = stream.read(tensor.size)
    return np.frombuffer(data, DTYPES[tensor.dtype]).reshape(tensor.shape)


def write_header(stream: BinaryIO, tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> None:
    """Starts a file: its header, for tensors whose bytes the caller then writes in this order, C-contiguous."""
    header, end = {"__metadata__": {"format": "pt"}}, 0  # transformers refuses files that don't say "pt"
    for name, dtype, shape in tensors:
        start, end = end, end + dtype.itemsize * int(np.prod(shape))
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    stream.write(len(text).to_bytes(8, "little") + text)
