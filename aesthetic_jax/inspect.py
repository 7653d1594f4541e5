"""Prints a data set's statistics and what is wrong with it; with --out writes inspect.json and contact_sheet.png.

aesthetic-jax inspect --manifest=FILE | --data_dir=DIR [--split=train,test] [--out=DIR]

--config counts tiles and tokens as its run would see them, with the tokenizer of config.init_from or --checkpoint, and names what
doesn't fit; its data set is looked at where neither --manifest nor --data_dir is given. A --checkpoint alone counts with
the defaults of aesthetic_jax/training/config.py.

inspect.json: {"source", "overall", "splits": {SPLIT: as overall}, "rejects": [{"name", "error"}], what can't be read,
"duplicates", "leakage"}. The keys of statistics are with `summarize` in aesthetic_jax/data/statistics.py, those of the last
two with `find_duplicates` in duplicates.py there. Images are called SPLIT/ID/original and SPLIT/ID/LETTER.
"""

import io
import json
import os
from typing import Any

from absl import flags

from aesthetic_jax.command_line import define_config, require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string("manifest", None, "manifest.jsonl; its images lie relative to it", flag_values=FLAGS)
flags.DEFINE_string("data_dir", None, "what aesthetic-jax build made", flag_values=FLAGS)
flags.DEFINE_list("split", None, "splits, separated by commas; all when left out", flag_values=FLAGS)
flags.DEFINE_string("checkpoint", None, "whose tokenizer counts: a run or a Hugging Face directory", flag_values=FLAGS)
flags.DEFINE_string("out", None, "folder for inspect.json and contact_sheet.png", flag_values=FLAGS)
flags.DEFINE_integer(
    "distance", 6, "bits of 64 in which near-same images may differ", lower_bound=0, upper_bound=12, flag_values=FLAGS
)
flags.DEFINE_integer("num_shown", 12, "samples on the contact sheet", lower_bound=1, upper_bound=200, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of the choice of samples on the contact sheet", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer(
    "workers", os.cpu_count(), "threads that read and decode; more for gs://", lower_bound=1, flag_values=FLAGS
)

_LISTED = 5  # of each kind of finding, on the screen


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    config = require(arguments, "config") if arguments["config"].present else None
    manifest, data_dir = arguments.manifest, arguments.data_dir
    if config is not None and not (manifest or data_dir):
        manifest, data_dir = config.data.manifest, config.data.data_dir
    if bool(manifest) == bool(data_dir):
        raise UserError("give either --manifest=FILE or --data_dir=DIR")

    from etils import epath
    from tqdm import tqdm

    from aesthetic_jax.data.duplicates import find_duplicates
    from aesthetic_jax.data.manifest import SPLITS
    from aesthetic_jax.data.records import open_splits
    from aesthetic_jax.data.statistics import summarize, survey

    splits = open_splits(manifest, data_dir)
    for name in arguments.split or ():
        if name not in splits:
            raise UserError(f"--split: {manifest or data_dir} has no samples of '{name}'; it has {', '.join(splits)}")
    splits = {name: splits[name] for name in SPLITS if name in (arguments.split or splits)}
    encoder = _make_encoder(config, arguments.checkpoint, manifest, data_dir)
    out = epath.Path(arguments.out) if arguments.out else None
    if out is not None:
        _write(out)  # better known before all images are read

    def bar(items, total):
        return tqdm(items, total=total, desc="reading", unit="sample", disable=None)

    data = survey(splits, encoder, arguments.workers, bar)
    kept = data.samples["split"]
    limits = encoder if config is not None else None
    duplicates, leakage = find_duplicates(data, arguments.distance)
    report = {
        "source": str(manifest or data_dir),
        "overall": summarize(data, kept >= 0, limits),
        "splits": {name: summarize(data, kept == SPLITS.index(name), limits) for name in splits},
        "rejects": data.rejects,
        "duplicates": duplicates,
        "leakage": leakage,
    }
    print(format_report(report))
    if out is not None:
        sheet = _contact_sheet(splits, data, arguments.num_shown, arguments.seed)
        _write(out, {"inspect.json": (json.dumps(report, indent=1) + "\n").encode(), "contact_sheet.png": sheet})
        print(out)


def _make_encoder(config: Any, checkpoint: str | None, manifest: str | None, data_dir: str | None) -> Any:
    """The encoder that counts tokens; None where neither a config nor a checkpoint is given."""
    if config is None and not checkpoint:
        return None

    from aesthetic_jax.training.config import base_config, check_config
    from aesthetic_jax.training.model import read_encoder

    config = base_config() if config is None else config
    config.data.manifest, config.data.data_dir = manifest or "", data_dir or ""
    config.init_from = checkpoint or config.init_from
    check_config(config)
    if not config.init_from:
        raise UserError("--config: names no tokenizer to count with; give --config.init_from=DIR or --checkpoint=DIR")
    return read_encoder(config)


def _write(folder: Any, files: dict[str, bytes] | None = None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(f"--out={folder}: can't be written ({error.strerror or error}); name another folder") from None


def _contact_sheet(splits: dict[str, Any], data: Any, number: int, seed: int) -> bytes:
    """The PNG of samples drawn from all splits."""
    from aesthetic_jax.data.contact_sheet import choose_samples, draw_contact_sheet
    from aesthetic_jax.data.manifest import SPLITS

    chosen = data.samples[choose_samples(data.samples["dimension"], number, seed)]
    shown = [(SPLITS[split], splits[SPLITS[split]][row]) for split, row in chosen[["split", "row"]].tolist()]
    buffer = io.BytesIO()
    draw_contact_sheet(shown).save(buffer, "PNG")
    return buffer.getvalue()


def format_report(report: dict[str, Any]) -> str:
    """A report of this command as text: a table with a column a split, then what was found."""
    columns = dict(report["splits"])
    if len(columns) != 1:
        columns["overall"] = report["overall"]
    lines = _align([("", list(columns)), *_table(list(columns.values()), report["overall"])])
    spreads = _align([("", ["least", "median", "95 %", "most"]), *_spreads(report["overall"])])
    return "\n".join([report["source"], *lines, "", *spreads, "", *_findings(report)])


def _align(rows: list[tuple[str, list[str]]]) -> list[str]:
    """Lines of a table: names to the left, cells to the right; a row without cells is a heading."""
    width = max(len(name) for name, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows if cells), strict=True)]
    return [
        "  ".join([name.ljust(width), *(cell.rjust(size) for cell, size in zip(cells, widths, strict=False))]).rstrip()
        for name, cells in rows
    ]


def _table(columns: list[dict[str, Any]], overall: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows (name, a cell for each column; none in a heading)."""
    rows = [("samples", [f"{x['samples']:,}" for x in columns])]

    def counts(title: str, field: str, total: str, most: int = 16) -> None:
        values = list(overall[field])
        rows.append((title, []))
        for value in values[:most]:
            rows.append((f"  {value}", [_counted(x[field].get(value, 0), x[total]) for x in columns]))
        if len(values) > most:
            others = [sum(n for value, n in x[field].items() if value not in values[:most]) for x in columns]
            cells = [_counted(n, x[total]) for n, x in zip(others, columns, strict=True)]
            rows.append((f"  {len(values) - most} others", cells))

    counts("dimensions", "dimensions", "samples")
    counts("answers", "answers", "samples")
    rows.append(("passes, of the samples with that option", []))
    rows.extend(
        (f"  {letter}", [f"{x['passing'][letter]:.0%}" if letter in x["passing"] else "-" for x in columns])
        for letter in overall["passing"]
    )
    counts("options", "options", "samples")
    rows.append(("with reasoning", [f"{x['reasoning']:.0%}" for x in columns]))
    rows.append(("with a question of their own", [f"{x['questions']:.0%}" for x in columns]))
    rows.append(("images", [f"{x['images']:,}" for x in columns]))
    rows.append(("images that can't be read", [f"{x['unreadable_images']:,}" for x in columns]))
    rows.append(("size of all images", [_size(x["total_bytes"]) for x in columns]))
    counts("formats", "formats", "images")
    counts("sizes", "sizes", "images", most=8)
    if "too_large" in overall:
        rows.append(("samples that don't fit the config", []))
        for name, field in (
            ("images", "data.max_images"),
            ("prompt", "data.prompt_buckets"),
            ("completion", "data.completion_buckets"),
        ):
            rows.append((f"  {field}", [f"{x['too_large'][name]:,}" for x in columns]))
    return rows


def _counted(number: int, total: int) -> str:
    return f"{number:,} {number / total:>4.0%}" if total else "-"


def _spreads(overall: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows (name, least, median, 95th percentile, most) of what was measured of images and samples."""
    named = (
        ("width, pixels", "width", "{:,}".format),
        ("height, pixels", "height", "{:,}".format),
        ("size of an image", "bytes", _size),
        ("tiles a sample", "tiles", "{:,}".format),
        ("prompt tokens", "prompt_tokens", "{:,}".format),
        ("completion tokens", "completion_tokens", "{:,}".format),
    )
    return [
        (name, [shown(overall[field][x]) for x in ("min", "p50", "p95", "max")])
        for name, field, shown in named
        if overall[field] is not None
    ]


def _size(number: float) -> str:
    power = min(len(str(int(number))) - 1, 12) // 3
    return f"{number / 1000**power:.{0 if not power else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _findings(report: dict[str, Any]) -> list[str]:
    """What is wrong, or may be, as lines of text."""
    duplicates, leakage = report["duplicates"], report["leakage"]

    def section(title: str, items: list[str], note: str = "") -> list[str]:
        more = [f"  and {len(items) - _LISTED:,} more"] if len(items) > _LISTED else []
        return [f"{title}: {len(items):,}{note}", *(f"  {item}" for item in items[:_LISTED]), *more]

    def listed(title: str, groups: list[list[str]], samples: dict[str, int] | None = None) -> list[str]:
        shown = [
            ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")
            for names in groups
        ]
        counts = ", ".join(f"{split} {n:,}" for split, n in (samples or {}).items())
        return section(title, shown, f" (samples concerned: {counts})" if groups and counts else "")

    return [
        f"{duplicates['distinct_files']:,} distinct files, {duplicates['distinct_images']:,} distinct images "
        f"(near-same: hashes up to {duplicates['distance']} bits apart)",
        *section("can't be read", [f"{x['name']}: {x['error']}" for x in report["rejects"]]),
        *listed("near-same images in several samples", duplicates["groups"]),
        *listed("near-same images in one sample", duplicates["within_samples"]),
        *listed("same candidate, original and dimension, two answers", duplicates["contradictions"]),
        *listed("leakage: near-same originals in several splits", **leakage["originals"]),
        *listed("leakage: near-same images in several splits", **leakage["images"]),
        *listed("leakage: same id in several splits", leakage["ids"]),
    ]
