"""Ways to compare PyTorch's arrays with ours.

Each function here returns a comparison: (PyTorch's arrays, ours) -> the two values as the table
shows them, and their difference.
"""

import re
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]
Comparison = Callable[[Arrays, Arrays], tuple[str, str, float]]

# A bias of the vision tower's keys adds the same to all scores of a softmax. Its true gradient is
# 0, so both sides compute only rounding.
_NO_GRADIENT = re.compile(r"vision_tower.*k_proj\.bias")


def _show(x: np.ndarray) -> str:
    if x.size == 1:
        return f"{float(x.reshape(())):.7g}"
    return f"RMS {np.sqrt(np.square(x.astype(np.float64)).mean()):.6g}"


def _gap(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    """Their values minus ours in float64; None where shapes differ."""
    if theirs.shape != ours.shape:
        return None
    return theirs.astype(np.float64) - ours.astype(np.float64)


def _elementwise(
    key: str,
    reduce: Callable[[np.ndarray, np.ndarray], float],
    show: Callable[[np.ndarray], str] = _show,
) -> Comparison:
    def compare(theirs: Arrays, ours: Arrays) -> tuple[str, str, float]:
        gap = _gap(theirs[key], ours[key])
        difference = float("inf") if gap is None else float(reduce(gap, theirs[key]))
        return show(theirs[key]), show(ours[key]), difference

    return compare


def largest(key: str) -> Comparison:
    """The largest absolute difference."""
    return _elementwise(key, lambda gap, _: np.abs(gap).max())


def rms(key: str) -> Comparison:
    """The root mean square of the differences."""
    return _elementwise(key, lambda gap, _: np.sqrt(np.square(gap).mean()))


def relative(key: str) -> Comparison:
    """The largest difference relative to PyTorch's value."""
    return _elementwise(key, lambda gap, theirs: np.abs(gap / theirs).max())


def unequal(key: str, unit: str) -> Comparison:
    """The number of elements that differ at all."""
    return _elementwise(
        key, lambda gap, _: float(np.count_nonzero(gap)), lambda x: f"{x.size:,} {unit}"
    )


def worst_tensor(prefix: str) -> Comparison:
    """The largest relative difference (L2) of a tensor whose name begins with the prefix."""

    def names(arrays: Arrays) -> set[str]:
        return {x for x in arrays if x.startswith(prefix) and not _NO_GRADIENT.search(x)}

    def relative_error(theirs: np.ndarray, ours: np.ndarray) -> float:
        gap = _gap(theirs, ours)
        if gap is None:
            return float("inf")
        return float(np.linalg.norm(gap) / np.linalg.norm(theirs))

    def compare(theirs: Arrays, ours: Arrays) -> tuple[str, str, float]:
        shown = f"{len(names(theirs))} tensors", f"{len(names(ours))} tensors"
        if names(theirs) != names(ours):
            return *shown, float("inf")
        errors = {name: relative_error(theirs[name], ours[name]) for name in names(theirs)}
        worst = max(errors, key=lambda name: errors[name])
        return shown[0], f"{shown[1]}, worst {worst.removeprefix(prefix)}", errors[worst]

    return compare


def at_most(key: str) -> Comparison:
    """Our own value, which the tolerance bounds; PyTorch has none."""
    return lambda _, ours: ("", _show(ours[key]), float(ours[key].reshape(())))
