"""What a compiled program sends between devices: its collectives, read from the HLO text, those inside loops counted as often.

XLA names the trips of a loop that it knows; a loop that stops by itself (sampling until all completions have ended) has none,
and its trips are given.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: XLA's name of it.
        shapes: of its results on one device.
        bytes: of the whole array that it makes or takes apart, on one device.
        wire_bytes: that a device must receive for it at least.
        count: times that it runs.
        in_loop: whether it stands inside a loop.
        across_slices: whether its devices are in more than one slice.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    wire_bytes: float
    count: int
    in_loop: bool
    across_slices: bool


def collectives(text: str, devices: int, *, trips: int = 1, per_slice: int | None = None) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        text: of the HLO module.
        devices: that the program runs on.
        trips: of loops whose number of trips XLA doesn't know.
        per_slice: devices of a slice; None: all.
    """
    computations, entry = _parse(text)
    found, channels = [], set()

    def walk(name: str, count: int, in_loop: bool) -> None:
        for _, shape, operation, rest in computations.get(name, ()):
            kind = operation.removesuffix("-start")
            if kind in _KINDS:
                channel = re.search(r"channel_id=(\d+)", rest)
                if channel and channel[1] in channels:
                    continue  # TPU's fusions of a collective with what runs meanwhile name it in each of their parts
                channels.add(channel and channel[1])
                if kind == "all-reduce" and "all-reduce-scatter" in name:  # TPU's fusion of all-reduce and slice
                    kind = "reduce-scatter"
                found.append(_collective(kind, operation, shape, rest, devices, per_slice or devices, count, in_loop))
                continue
            if kind in ("reduce", "sort", "map", "reduce-window", "select-and-scatter", "scatter"):
                continue  # what they call works on single numbers
            inner, looped = count, in_loop
            if operation == "while":
                inner, looped = count * (_known_trips(rest, computations) or trips), True
            for called in _CALLED.findall(rest):
                for each in called.strip("{}").split(","):
                    walk(each.strip().lstrip("%"), inner, looped)

    walk(entry, 1, False)
    return found


def summarize_collectives(found: Sequence[Collective]) -> tuple[dict[str, int], dict[str, int]]:
    """Runs and bytes of each kind."""
    counts, sizes = collections.Counter(), collections.Counter()
    for each in found:
        counts[each.kind] += each.count
        sizes[each.kind] += each.count * each.bytes
    return dict(sorted(counts.items())), dict(sorted(sizes.items()))


def stack_gathers(found: Sequence[Collective], stacks: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Shapes of gathered whole stacks of layers, which the scan should gather one at a time.

    Args:
        found: of `collectives`.
        stacks: shapes, on one device, of the stacked parameters that are kept in pieces, put together.
    """
    wanted = {tuple(sorted(x for x in shape if x > 1)) for shape in stacks}
    gathers = [shape for each in found if each.kind == "all-gather" for shape in each.shapes]
    return [shape for shape in gathers if tuple(sorted(x for x in shape if x > 1)) in wanted]


def _known_trips(rest: str, computations: dict[str, list[tuple[str, str, str, str]]]) -> int | None:
    """Trips of a loop: as XLA names them, or N where it goes on while its counter, from 0, is less than the constant N."""
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    *others, (_, _, operation, root) = computations.get(condition[1] if condition else "") or [("",) * 4]
    limit = re.match(r".*, %([\w.\-]+)\), direction=LT", root) if operation == "compare" else None
    for name, _, other, value in others if limit else ():
        if (name, other) == (limit[1], "constant"):
            return int(value.partition(")")[0])
    return None


def _parse(text: str) -> tuple[dict[str, list[tuple[str, str, str, str]]], str]:
    """Instructions (name, shape, operation, the rest of the line) of each computation, and the entry's name."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            current = computations[begins[2]] = []
            entry = begins[2] if begins[1] else entry
        elif line == "}":  # a literal over several lines may begin one with it
            current = None
        elif current is not None and (parts := _INSTRUCTION.match(line)):
            current.append(parts.groups())
    return computations, entry


def _collective(kind, operation, shape, rest, devices, per_slice, count, in_loop) -> Collective:
    arrays = [(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in _ARRAY.findall(shape)]
    if operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
        arrays = [x for x in arrays if x[0] not in ("u32", "s32") or x[1]]  # a permute's own counters
        arrays = arrays[len(arrays) // 2 :]  # operands come first, then results
    groups = _groups(rest, devices)
    size = max(map(len, groups))
    total = int(sum(math.prod(sizes) * _width(dtype) for dtype, sizes in arrays))
    if kind == "reduce-scatter" and operation.startswith("reduce-scatter"):
        total *= size  # the result is a piece of what is summed
    share = (size - 1) / size
    wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * total
    across = any(len({device // per_slice for device in group}) > 1 for group in groups)
    return Collective(kind, tuple(sizes for _, sizes in arrays), total, wire, count, in_loop, across)


def _width(dtype: str) -> float:
    """Bytes of a number of an HLO type."""
    return _BYTES.get(dtype) or int(re.search(r"\d+", dtype)[0]) / 8


def _groups(rest: str, devices: int) -> list[list[int]]:
    """Which devices exchange with each other."""
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, order = ([int(x) for x in part.split(",")] for part in iota.group(1, 2))
        ids = np.arange(math.prod(order)).reshape(order)
        if iota[3]:
            ids = ids.transpose([int(x) for x in iota[3].split(",")])
        return ids.reshape(shape).tolist()
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        within = re.findall(r"'(\w+)'", named[2])
        order = [list(sizes).index(axis) for axis in [*(x for x in sizes if x not in within), *within]]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values())).transpose(order)
        return ids.reshape(-1, math.prod(sizes[axis] for axis in within)).tolist()
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
        groups = [[int(x) for x in group.split(",") if x.strip()] for group in re.findall(r"\{([\d, ]*)\}", listed[1])]
        return [group for group in groups if group] or [list(range(devices))]
    return [list(range(devices))]
