"""Data-sheet figures of TPU chips: peak FLOP/s, memory and links (cloud.google.com/tpu/docs)."""

from typing import NamedTuple

_GIB = 2**30


class Chip(NamedTuple):
    """What one TPU chip can do."""

    flops: float  # peak FLOP/s in bfloat16
    memory: int  # bytes
    links: float  # bytes/s over all its links to other chips of its slice


_V5P = Chip(459e12, 95 * _GIB, 600e9)

TPU_CHIPS = {  # by `device_kind`
    "TPU v4": Chip(275e12, 32 * _GIB, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 200e9),
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": Chip(918e12, 32 * _GIB, 448e9),
    "TPU7x": Chip(2307e12, 192 * _GIB, 1200e9),
}
