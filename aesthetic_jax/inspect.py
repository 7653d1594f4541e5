"""Prints a data set's statistics, its duplicates, and leakage between its splits.

aesthetic-jax inspect --manifest=shop/manifest.jsonl --out=shop/inspect
aesthetic-jax inspect --data_dir=shop/data --split=train,test --checkpoint=results/runs/sft
aesthetic-jax inspect --config=configs/quickstart.py:sft --config.data.data_dir=shop/data \\
  --config.init_from=results/runs/sft

--out gets inspect.json, the report that `make_report` in aesthetic_jax/data/inspection.py
describes, and contact_sheet.png. Images are called SPLIT/ID/original and SPLIT/ID/LETTER.

With --config, the report also counts tiles and tokens as in training, with the tokenizer of
config.init_from or --checkpoint, and lists samples that don't fit. Without --manifest and
--data_dir, the config names the data set. --checkpoint without --config counts with the prompt
settings of the checkpoint's run, or for a Hugging Face directory with the defaults of
aesthetic_jax/training/config.py.
"""

import io
import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from absl import flags

from aesthetic_jax.command_line import define_config, require
from aesthetic_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

    from aesthetic_jax.data.pipeline import Preprocessor
    from aesthetic_jax.data.records import Records
    from aesthetic_jax.data.survey import Survey

FLAGS = flags.FlagValues()
define_config(FLAGS)
flags.DEFINE_string(
    "manifest", None, "manifest.jsonl, with image paths relative to it", flag_values=FLAGS
)
flags.DEFINE_string("data_dir", None, "data set made by aesthetic-jax build", flag_values=FLAGS)
flags.DEFINE_list("split", None, "splits, separated by commas; by default all", flag_values=FLAGS)
flags.DEFINE_string(
    "checkpoint",
    None,
    "run or Hugging Face directory whose tokenizer counts tokens",
    flag_values=FLAGS,
)
flags.DEFINE_string("out", None, "folder for inspect.json and contact_sheet.png", flag_values=FLAGS)
flags.DEFINE_integer(
    "distance",
    6,
    "bits of 64 in which the hashes of near-same images may differ",
    lower_bound=0,
    upper_bound=12,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_shown",
    12,
    "samples on the contact sheet",
    lower_bound=1,
    upper_bound=200,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "seed", 0, "seed that draws the contact sheet's samples", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "workers",
    os.cpu_count(),
    "threads that read and decode; more for gs://",
    lower_bound=1,
    flag_values=FLAGS,
)


def main(arguments: flags.FlagValues) -> None:
    """Prints the report and, with --out, writes it and the contact sheet."""
    config = require(arguments, "config") if arguments["config"].present else None
    manifest, data_dir = arguments.manifest, arguments.data_dir
    if config is not None and not (manifest or data_dir):
        manifest, data_dir = config.data.manifest, config.data.data_dir
    if bool(manifest) == bool(data_dir):
        raise UserError("give either --manifest=FILE or --data_dir=DIR")

    from etils import epath
    from tqdm import tqdm

    from aesthetic_jax.data.inspection import format_report, make_report
    from aesthetic_jax.data.survey import survey

    source = str(manifest or data_dir)
    splits = _open_splits(manifest, data_dir, arguments.split)
    preprocessor = _make_preprocessor(config, arguments.checkpoint, manifest, data_dir)
    out = epath.Path(arguments.out) if arguments.out else None
    if out is not None:
        _write(out, {})  # fails before all images are read

    def progress(items: Iterable, total: int) -> Iterable:
        return tqdm(items, total=total, desc="reading", unit="sample", disable=None)

    data = survey(splits, preprocessor, arguments.workers, progress)
    limits = preprocessor if config is not None else None
    report = make_report(source, data, list(splits), arguments.distance, limits)
    print(format_report(report))
    if out is not None:
        text = json.dumps(report, indent=1) + "\n"
        sheet = _contact_sheet(splits, data, arguments.num_shown, arguments.seed)
        _write(out, {"inspect.json": text.encode(), "contact_sheet.png": sheet})
        print(out)


def _open_splits(
    manifest: str | None, data_dir: str | None, chosen: list[str] | None
) -> dict[str, "Records"]:
    """The records of the chosen splits, or of all, in the order of SPLITS."""
    from aesthetic_jax.data.records import open_splits

    splits = open_splits(manifest, data_dir)
    for name in chosen or ():
        if name not in splits:
            raise UserError(
                f"--split: {manifest or data_dir} has no samples of '{name}'; "
                f"choose from {', '.join(splits)}"
            )
    return {name: records for name, records in splits.items() if name in (chosen or splits)}


def _make_preprocessor(
    config: Any, checkpoint: str | None, manifest: str | None, data_dir: str | None
) -> "Preprocessor | None":
    """The preprocessor that counts tokens; None without a config and a checkpoint."""
    if config is None and not checkpoint:
        return None

    from aesthetic_jax.training.config import base_config, check_config
    from aesthetic_jax.training.model import (
        adopt_prompt_settings,
        is_hugging_face,
        read_preprocessor,
    )

    if config is None:
        config = base_config()
        if checkpoint and not is_hugging_face(checkpoint):
            adopt_prompt_settings(config, checkpoint)
    config.data.manifest, config.data.data_dir = manifest or "", data_dir or ""
    config.init_from = checkpoint or config.init_from
    check_config(config)
    if not config.init_from:
        raise UserError(
            "--config: names no tokenizer to count with; "
            "give --config.init_from=DIR or --checkpoint=DIR"
        )
    return read_preprocessor(config)


def _write(folder: "epath.Path", files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise UserError(
            f"--out={folder}: can't be written ({error.strerror or error}); choose another folder"
        ) from None


def _contact_sheet(splits: dict[str, "Records"], data: "Survey", number: int, seed: int) -> bytes:
    """A PNG of `number` samples drawn from all splits."""
    from aesthetic_jax.data.contact_sheet import choose_samples, draw_contact_sheet
    from aesthetic_jax.data.manifest import SPLITS

    chosen = data.samples[choose_samples(data.samples["dimension"], number, seed)]
    samples = [
        (SPLITS[split], splits[SPLITS[split]][row])
        for split, row in chosen[["split", "row"]].tolist()
    ]
    buffer = io.BytesIO()
    draw_contact_sheet(samples).save(buffer, "PNG")
    return buffer.getvalue()
