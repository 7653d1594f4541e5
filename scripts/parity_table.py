"""The table of parity.py: which quantities are compared, how, within which tolerance, and what came out."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from parity_cases import COMPLETION, GROUP, LOSSES, MAX_TILES_PREPROCESSED, SCALES, STEPS, TEMPERATURE, TILE_SIZE, Work

# A bias of the vision tower's keys adds the same to every score of a softmax: its gradient is rounding alone.
_NO_GRADIENT = re.compile(r"vision_tower.*k_proj\.bias")

Arrays = dict[str, np.ndarray]
Found = tuple[str, str, float]  # PyTorch's value and ours as they are shown, and the difference


class Row(NamedTuple):
    """One quantity.

    Attributes:
        quantity: its name in the table.
        section: where both sides' arrays are.
        compare: (PyTorch's arrays, ours) -> values to show and the difference.
        tolerance: the largest difference that passes.
        reference: PyTorch's section, if it isn't the same.
    """

    quantity: str
    section: str
    compare: Callable[[Arrays, Arrays], Found]
    tolerance: float
    reference: str | None = None


class Result(NamedTuple):
    """A row of the finished table."""

    quantity: str
    pytorch: str
    ours: str
    difference: float
    tolerance: float
    verdict: str


# --- Ways to compare ---


def _show(x: np.ndarray) -> str:
    if x.size == 1:
        return f"{float(x.reshape(())):.7g}"
    return f"RMS {np.sqrt(np.square(x.astype(np.float64)).mean()):.6g}"


def _gap(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray | None:
    if theirs.shape != ours.shape:
        return None
    return theirs.astype(np.float64) - ours.astype(np.float64)


def _elementwise(key: str, reduce: Callable[[np.ndarray, np.ndarray], float], show=_show) -> Callable:
    def compare(theirs: Arrays, ours: Arrays) -> Found:
        gap = _gap(theirs[key], ours[key])
        difference = float("inf") if gap is None else float(reduce(gap, theirs[key]))
        return show(theirs[key]), show(ours[key]), difference

    return compare


def largest(key: str) -> Callable:
    """The largest absolute difference."""
    return _elementwise(key, lambda gap, _: np.abs(gap).max())


def rms(key: str) -> Callable:
    """The root mean square of the differences."""
    return _elementwise(key, lambda gap, _: np.sqrt(np.square(gap).mean()))


def relative(key: str) -> Callable:
    """The largest difference relative to PyTorch's value."""
    return _elementwise(key, lambda gap, theirs: np.abs(gap / theirs).max())


def unequal(key: str, unit: str) -> Callable:
    """The number of elements that are not the same, bit by bit."""
    return _elementwise(key, lambda gap, _: np.count_nonzero(gap), lambda x: f"{x.size:,} {unit}")


def worst_tensor(prefix: str) -> Callable:
    """The largest relative difference (L2) of a tensor among those whose names begin with the prefix."""

    def compare(theirs: Arrays, ours: Arrays) -> Found:
        names = {name for name in theirs if name.startswith(prefix) and not _NO_GRADIENT.search(name)}
        others = {name for name in ours if name.startswith(prefix) and not _NO_GRADIENT.search(name)}
        shown = f"{len(names)} tensors", f"{len(others)} tensors"
        if names != others:
            return *shown, float("inf")
        errors = {}
        for name in names:
            gap = _gap(theirs[name], ours[name])
            errors[name] = float("inf") if gap is None else float(np.linalg.norm(gap) / np.linalg.norm(theirs[name]))
        worst = max(errors, key=errors.get)
        return shown[0], f"{shown[1]}, worst {worst.removeprefix(prefix)}", errors[worst]

    return compare


def at_most(key: str) -> Callable:
    """Our own value, which the tolerance bounds; PyTorch has none."""
    return lambda _, ours: ("", _show(ours[key]), float(ours[key].reshape(())))


# --- The rows ---


def make_rows(work: Work) -> list[Row]:
    """The rows of a size."""
    amount = work.amount
    decoding = f"greedy decoding, {amount.greedy_prompts} prompts with images x {amount.greedy_tokens} tokens"
    tiles = f"image tiles of {TILE_SIZE} pixels, up to {MAX_TILES_PREPROCESSED} an image, bytes"
    logprobs = f"{amount.prompts} prompts x {amount.group} completions"
    model = f"GRPO loss of the model, temperature {TEMPERATURE}, off policy, KL"
    rows = [
        Row(tiles, "images", unequal("tiles", "bytes"), 0),
        Row("normalised pixels", "images", largest("pixels"), 1e-6),
        *(
            Row(f"prompt {what}, {title} template", "prompts", unequal(f"{name}_{key}", unit), 0)
            for name, title in (("hf", "-hf"), ("original", "original internvl2_5"))
            for what, key, unit in (("text", "text", "bytes"), ("ids", "ids", "ids"))
        ),
        Row("vision features", "forward", largest("vision"), 1e-4),
        Row("projector output", "forward", largest("projected"), 1e-4),
        Row("logits at valid positions", "forward", largest("logits"), 1e-4),
        Row(f"per-token log-probability, RMS, {logprobs}", "logprobs", rms("logprobs"), 2e-3),
        Row("per-token entropy, RMS", "logprobs", rms("entropies"), 2e-3),
        Row("per-token log-probability, bfloat16 with float32 head, RMS", "bfloat16", rms("logprobs"), 0.03),
        Row(decoding, "greedy", unequal("ids", "tokens"), 0),
        *(Row(f"advantages, scale_rewards={scale}", "advantages", largest(scale), 1e-5) for scale in SCALES),
    ]
    for name in LOSSES:
        rows.append(Row(f"policy_loss {name}", "losses", largest(f"{name}/loss"), 1e-5))
        rows.append(Row(f"policy_loss {name}: gradient", "losses", largest(f"{name}/gradient"), 1e-6))
    rows += [
        Row("export reopened by transformers: logits", "export", largest("logits"), 1e-5, "forward"),
        Row(
            "export reopened by transformers: missing and unexpected keys",
            "export",
            at_most("wrong_keys"),
            0,
            "forward",
        ),
        Row("import: seconds", "load", at_most("seconds"), 60, "forward"),
        Row("import: peak host memory / bytes kept", "load", at_most("memory"), 1.2, "forward"),
        Row("SFT loss", "sft", largest("loss"), 1e-5),
        Row("SFT loss: supervised tokens", "sft", largest("tokens"), 0),
        Row("SFT loss: gradient in the log-probabilities", "sft", largest("gradient"), 1e-6),
        Row("SFT loss: gradient of every parameter, relative", "sft", worst_tensor("gradients/"), 1e-4),
        Row(model, "grpo", largest("loss"), 1e-5),
        Row(f"{model}: gradient in the log-probabilities", "grpo", largest("gradient"), 1e-6),
        Row(f"{model}: gradient of every parameter, relative", "grpo", worst_tensor("gradients/"), 1e-4),
    ]
    for name, section in (("SFT", "sft_run"), (f"GRPO (G {GROUP}, T {COMPLETION}, beta > 0)", "grpo_run")):
        rows += [
            Row(f"{name}, {STEPS} steps: losses", section, largest("losses"), 1e-4),
            Row(f"{name}, {STEPS} steps: gradient norms, relative", section, relative("grad_norms"), 1e-4),
            Row(f"{name}, {STEPS} steps: final weights, relative", section, worst_tensor("weights/"), 1e-4),
        ]
    return rows


def compare(work: Work, sections: tuple[str, ...]) -> list[Result]:
    """The table of the sections that both sides have saved."""
    results = []
    for row in make_rows(work):
        if row.section in sections:
            theirs, ours = work.load("torch", row.reference or row.section), work.load("ours", row.section)
            pytorch, mine, difference = row.compare(theirs, ours)
            verdict = "pass" if difference <= row.tolerance else "FAIL"  # a NaN fails
            results.append(Result(row.quantity, pytorch, mine, difference, row.tolerance, verdict))
    return results


def markdown(results: list[Result], title: str) -> str:
    """The table in Markdown, its columns aligned."""
    head = ("quantity", "PyTorch", "ours", "difference", "tolerance", "verdict")
    cells = [head] + [
        (r.quantity, r.pytorch, r.ours, f"{r.difference:.1e}" if r.difference else "0", f"{r.tolerance:g}", r.verdict)
        for r in results
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    passed = sum(result.verdict == "pass" for result in results)
    return "\n".join([f"# {title}", "", *lines, "", f"{passed} of {len(results)} rows pass.", ""])
