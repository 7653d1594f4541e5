"""The report of the inspect command: statistics, duplicates and leakage, as JSON and as text."""

from collections.abc import Callable
from typing import Any

import numpy as np

from aesthetic_jax.data.duplicates import find_duplicates
from aesthetic_jax.data.manifest import SPLITS
from aesthetic_jax.data.statistics import summarize
from aesthetic_jax.data.survey import Survey

_LISTED = 5  # items shown of each kind of finding

# A row of a table: its name, and one cell per column; a row without cells is a heading.
_Row = tuple[str, list[str]]


def make_report(
    source: str, data: Survey, splits: list[str], distance: int, limits: Any = None
) -> dict[str, Any]:
    """The report as JSON.

    Args:
        source: name of the data set.
        data: its survey.
        splits: to report on, in order.
        distance: largest number of differing bits between hashes of near-same images.
        limits: a Preprocessor whose limits define what is too large; None: not reported.

    Returns:
        {"source", "overall", "splits": {SPLIT: as overall}, "rejects": [{"name", "error"}],
        "duplicates", "leakage"}, with the statistics of `summarize` and the findings of
        `find_duplicates`.
    """
    split = data.samples["split"]
    duplicates, leakage = find_duplicates(data, distance)
    return {
        "source": source,
        "overall": summarize(data, np.ones(len(split), bool), limits),
        "splits": {name: summarize(data, split == SPLITS.index(name), limits) for name in splits},
        "rejects": data.rejects,
        "duplicates": duplicates,
        "leakage": leakage,
    }


def format_report(report: dict[str, Any]) -> str:
    """The report as text: a table with one column per split, then the findings."""
    columns = dict(report["splits"])
    if len(columns) != 1:
        columns["overall"] = report["overall"]
    table = _align([("", list(columns)), *_table(list(columns.values()), report["overall"])])
    spreads = _align([("", ["min", "median", "95 %", "max"]), *_spreads(report["overall"])])
    return "\n".join([report["source"], *table, "", *spreads, "", *_findings(report)])


def _align(rows: list[_Row]) -> list[str]:
    """Lines of a table: names left-aligned, cells right-aligned."""
    width = max(len(name) for name, _ in rows)
    columns = zip(*(cells for _, cells in rows if cells), strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for name, cells in rows:
        padded = [cell.rjust(size) for cell, size in zip(cells, widths, strict=False)]
        lines.append("  ".join([name.ljust(width), *padded]).rstrip())
    return lines


def _table(columns: list[dict[str, Any]], overall: dict[str, Any]) -> list[_Row]:
    """Rows of the statistics, with a cell for each column's summary."""

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> _Row:
        return name, [cell(summary) for summary in columns]

    def counts(field: str, total: str, most: int = 16) -> list[_Row]:
        return [(field, []), *_count_rows(columns, list(overall[field]), field, total, most)]

    passing = [
        row(f"  {x}", lambda c, x=x: f"{c['passing'][x]:.0%}" if x in c["passing"] else "-")
        for x in overall["passing"]
    ]
    if passing:  # descriptions have no options
        passing.insert(0, ("passes, of the samples with that option", []))
    rows = [
        row("samples", lambda x: f"{x['samples']:,}"),
        *counts("dimensions", "samples"),
        *counts("answers", "samples"),
        *passing,
        *counts("options", "samples"),
        row("with reasoning", lambda x: f"{x['reasoning']:.0%}"),
        row("with a question of their own", lambda x: f"{x['questions']:.0%}"),
        row("images", lambda x: f"{x['images']:,}"),
        row("images that can't be read", lambda x: f"{x['unreadable_images']:,}"),
        row("size of all images", lambda x: _size(x["total_bytes"])),
        *counts("formats", "images"),
        *counts("sizes", "images", most=8),
    ]
    if "too_large" in overall:
        rows.append(("samples that don't fit the config", []))
        rows += [
            row("  data.max_images", lambda x: f"{x['too_large']['images']:,}"),
            row("  data.prompt_buckets", lambda x: f"{x['too_large']['prompt']:,}"),
            row("  data.completion_buckets", lambda x: f"{x['too_large']['completion']:,}"),
        ]
    return rows


def _count_rows(
    columns: list[dict[str, Any]], values: list[str], field: str, total: str, most: int
) -> list[_Row]:
    """A row for each of the `most` first values of a field, and one for the others together."""

    def cell(summary: dict[str, Any], counted: list[str]) -> str:
        number = sum(summary[field].get(value, 0) for value in counted)
        return f"{number:,} {number / summary[total]:>4.0%}" if summary[total] else "-"

    rows = [(f"  {value}", [cell(x, [value]) for x in columns]) for value in values[:most]]
    if others := values[most:]:
        rows.append((f"  {len(others)} others", [cell(x, others) for x in columns]))
    return rows


def _spreads(overall: dict[str, Any]) -> list[_Row]:
    """Rows with the minimum, median, 95th percentile and maximum of each quantity."""
    measured = (
        ("width, pixels", "width", "{:,}".format),
        ("height, pixels", "height", "{:,}".format),
        ("size of an image", "bytes", _size),
        ("tiles per sample", "tiles", "{:,}".format),
        ("prompt tokens", "prompt_tokens", "{:,}".format),
        ("completion tokens", "completion_tokens", "{:,}".format),
    )
    return [
        (name, [show(overall[field][x]) for x in ("min", "p50", "p95", "max")])
        for name, field, show in measured
        if overall[field] is not None
    ]


def _size(number: float) -> str:
    """A number of bytes in B, kB, MB, GB or TB."""
    power = min(len(str(int(number))) - 1, 12) // 3
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    return f"{number / 1000**power:.{1 if power else 0}f} {unit}"


def _findings(report: dict[str, Any]) -> list[str]:
    """Actual and possible faults, as lines of text."""
    duplicates, leakage = report["duplicates"], report["leakage"]
    rejects = [f"{x['name']}: {x['error']}" for x in report["rejects"]]
    return [
        f"{duplicates['distinct_files']:,} distinct files, "
        f"{duplicates['distinct_images']:,} distinct images "
        f"(near-same: hashes up to {duplicates['distance']} bits apart)",
        *_section("can't be read", rejects),
        *_section("near-same images in several samples", _join(duplicates["groups"])),
        *_section("near-same images in one sample", _join(duplicates["within_samples"])),
        *_section(
            "same candidate, original and dimension, two answers",
            _join(duplicates["contradictions"]),
        ),
        *_section(
            "leakage: near-same originals in several splits",
            _join(leakage["originals"]["groups"]),
            leakage["originals"]["samples"],
        ),
        *_section(
            "leakage: near-same images in several splits",
            _join(leakage["images"]["groups"]),
            leakage["images"]["samples"],
        ),
        *_section("leakage: same id in several splits", _join(leakage["ids"])),
    ]


def _section(title: str, items: list[str], samples: dict[str, int] | None = None) -> list[str]:
    """A finding's title with the number of items, and the first of them; counts the samples."""
    counts = ", ".join(f"{split} {n:,}" for split, n in (samples or {}).items())
    note = f" (affected samples: {counts})" if items and counts else ""
    more = [f"  and {len(items) - _LISTED:,} more"] if len(items) > _LISTED else []
    return [f"{title}: {len(items):,}{note}", *(f"  {item}" for item in items[:_LISTED]), *more]


def _join(groups: list[list[str]]) -> list[str]:
    """Each group's first names as text."""
    lines = []
    for names in groups:
        more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
        lines.append(", ".join(names[:_LISTED]) + more)
    return lines
