"""A compiled program's collectives and their bytes, read from its HLO text.

A collective inside a loop counts once per iteration. XLA prints the trip count of most loops. For
loops that end on a condition (sampling until all completions have ended) the caller gives it.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from aesthetic_jax.models.internvl import Parameters

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# Operations that call a computation on single numbers, which has no collectives.
_ELEMENTWISE_CALLS = ("reduce", "sort", "map", "reduce-window", "select-and-scatter", "scatter")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*)$")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
        kind: XLA's name for it, such as all-gather.
        shapes: shapes of its results on one device.
        bytes: size on one device of the whole array that it gathers, reduces or splits.
        wire_bytes: the least that each device must receive.
        count: how often it runs.
        in_loop: whether it is inside a loop.
        across_slices: whether a group of its devices spans several slices.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    wire_bytes: float
    count: int
    in_loop: bool
    across_slices: bool


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str  # of the line: operands and attributes


def collectives(
    text: str, devices: int, *, trips: int = 1, per_slice: int | None = None
) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        text: the compiled HLO module.
        devices: number of devices that the program runs on.
        trips: iterations of loops whose trip count XLA doesn't know.
        per_slice: devices per slice; None: all devices are one slice.
    """
    computations, entry = _parse(text)
    found, channels = [], set()

    def walk(computation: str, count: int, in_loop: bool) -> None:
        for instruction in computations.get(computation, ()):
            kind = instruction.operation.removesuffix("-start")
            if kind in _KINDS:
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                if channel and channel[1] in channels:
                    continue  # a TPU fusion repeats its collective in each part of the overlap
                if channel:
                    channels.add(channel[1])
                if kind == "all-reduce" and "all-reduce-scatter" in computation:
                    kind = "reduce-scatter"  # a TPU fusion of all-reduce and slice
                groups = _groups(instruction.rest, devices)
                across = any(
                    len({x // (per_slice or devices) for x in group}) > 1 for group in groups
                )
                shapes, size, wire = _sizes(kind, instruction, max(map(len, groups)))
                found.append(Collective(kind, shapes, size, wire, count, in_loop, across))
            elif kind not in _ELEMENTWISE_CALLS:
                inner, looped = count, in_loop
                if kind == "while":
                    inner *= _known_trips(instruction, computations) or trips
                    looped = True
                for called in _CALLED.findall(instruction.rest):
                    for name in called.strip("{}").split(","):
                        walk(name.strip().lstrip("%"), inner, looped)

    walk(entry, 1, False)
    return found


def summarize_collectives(found: Sequence[Collective]) -> tuple[dict[str, int], dict[str, int]]:
    """How often each kind runs, and the bytes of each kind."""
    counts, sizes = collections.Counter(), collections.Counter()
    for collective in found:
        counts[collective.kind] += collective.count
        sizes[collective.kind] += collective.count * collective.bytes
    return dict(sorted(counts.items())), dict(sorted(sizes.items()))


def gathered_stacks(parameters: Parameters) -> list[tuple[int, ...]]:
    """Per-device shapes of fsdp-split parameter stacks after an all-gather of all layers.

    Args:
        parameters: abstract arrays with shardings.
    """
    shapes = []
    for x in jax.tree.leaves(parameters):
        spec = tuple(x.sharding.spec)
        if "fsdp" in spec and spec[0] is None and len(x.shape) > 2:
            shape = list(x.sharding.shard_shape(x.shape))
            shape[spec.index("fsdp")] *= x.sharding.mesh.shape["fsdp"]
            shapes.append(tuple(shape))
    return shapes


def stack_gathers(
    found: Sequence[Collective], stacks: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Shapes of all-gathers of a parameter of all layers; the layer scan should gather one layer.

    Args:
        found: from `collectives`.
        stacks: from `gathered_stacks`.
    """
    wanted = {_unordered(shape) for shape in stacks}
    gathers = [shape for x in found if x.kind == "all-gather" for shape in x.shapes]
    return [shape for shape in gathers if _unordered(shape) in wanted]


def _unordered(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of length 1 and without order, as XLA may transpose and reshape."""
    return tuple(sorted(size for size in shape if size > 1))


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Instructions of each computation by its name, and the name of the entry computation."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line == "}":  # the whole line; lines of a multi-line literal only begin with it
            current = None
        elif current is not None and (fields := _INSTRUCTION.match(line)):
            current.append(_Instruction(*fields.groups()))
    return computations, entry


def _known_trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int | None:
    """Trip count of a loop; None: unknown.

    XLA prints it, or the loop counts from 0 to a constant N.
    """
    if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    if not instructions or instructions[-1].operation != "compare":
        return None
    limit = re.match(r".*, %([\w.\-]+)\), direction=LT", instructions[-1].rest)
    for instruction in instructions[:-1]:
        if limit and (instruction.name, instruction.operation) == (limit[1], "constant"):
            return int(instruction.rest.partition(")")[0])
    return None


def _sizes(
    kind: str, instruction: _Instruction, group: int
) -> tuple[tuple[tuple[int, ...], ...], int, float]:
    """Shapes, bytes and wire bytes of a collective among groups of so many devices."""
    arrays = [
        (dtype, tuple(map(int, filter(None, sizes.split(",")))))
        for dtype, sizes in _ARRAY.findall(instruction.shape)
    ]
    if instruction.operation in ("all-gather-start", "collective-permute-start"):
        # A permute also returns scalar counters.
        arrays = [x for x in arrays if x[0] not in ("u32", "s32") or x[1]]
        arrays = arrays[len(arrays) // 2 :]  # operands come first, then results
    total = int(sum(math.prod(sizes) * _element_bytes(dtype) for dtype, sizes in arrays))
    if kind == "reduce-scatter" and instruction.operation.startswith("reduce-scatter"):
        total *= group  # its result is one shard of the sum
    share = (group - 1) / group
    wire = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share) * total
    return tuple(sizes for _, sizes in arrays), total, wire


def _element_bytes(dtype: str) -> float:
    """Bytes of one element of an HLO type."""
    return float(_BYTES.get(dtype) or int(re.findall(r"\d+", dtype)[0]) / 8)


def _groups(rest: str, devices: int) -> list[list[int]]:
    """Groups of devices that exchange data, in any of HLO's notations; none given: one of all."""
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, order = ([int(x) for x in sizes.split(",")] for sizes in iota.group(1, 2))
        ids = np.arange(math.prod(order)).reshape(order)
        if iota[3]:
            ids = ids.transpose([int(x) for x in iota[3].split(",")])
        return ids.reshape(shape).tolist()
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        within = re.findall(r"'(\w+)'", axes[2])
        across = [axis for axis in sizes if axis not in within]
        order = [list(sizes).index(axis) for axis in [*across, *within]]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values())).transpose(order)
        return ids.reshape(-1, math.prod(sizes[axis] for axis in within)).tolist()
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
        groups = [
            [int(x) for x in group.split(",") if x.strip()]
            for group in re.findall(r"\{([\d, ]*)\}", listed[1])
        ]
        return [group for group in groups if group] or [list(range(devices))]
    return [list(range(devices))]
