"""parity.md and parity.json: the table of a comparison, and the versions it was made with."""

import importlib.metadata
import json
from pathlib import Path

from paritylib.rows import Result

PACKAGES = ("torch", "transformers", "trl", "jax", "flax", "optax")


def markdown(results: list[Result], title: str) -> str:
    """The table in Markdown, its columns aligned."""
    cells = [("quantity", "PyTorch", "ours", "difference", "tolerance", "verdict")] + [
        (
            result.quantity,
            result.pytorch,
            result.ours,
            f"{result.difference:.1e}" if result.difference else "0",
            f"{result.tolerance:g}",
            result.verdict,
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    passed = sum(result.verdict == "pass" for result in results)
    return "\n".join([f"# {title}", "", *lines, "", f"{passed} of {len(results)} rows pass.", ""])


def write_report(
    out: Path, results: list[Result], *, size: str, dtype: str, inject: str | None
) -> str:
    """Writes both files to `out`; returns the text of parity.md."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    title = f"Parity with PyTorch, size {size}, {dtype}, CPU"
    title += f", with the error {inject} planted" if inject else ""
    table = markdown(results, title)
    table += "\n" + ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n"
    (out / "parity.md").write_text(table)
    # Arrays of other shapes differ by infinity, which JSON doesn't have.
    rows = [
        row._asdict() | {"difference": row.difference if row.difference < float("inf") else None}
        for row in results
    ]
    content = {"size": size, "dtype": dtype, "inject": inject, "versions": versions, "rows": rows}
    (out / "parity.json").write_text(json.dumps(content, indent=2) + "\n")
    return table
