"""Converts a Hugging Face checkpoint to a run, or a run to such a checkpoint or a PEFT adapter.

Examples:
  aesthetic-jax convert --from_hf=OpenGVLab/InternVL3-2B --to=runs/base
  aesthetic-jax convert --from=runs/hcm_grpo --to_hf=screener --metrics=eval/metrics.json
  aesthetic-jax convert --from=runs/sft --to_peft=adapter --source=OpenGVLab/InternVL3-2B

The folder that --to_hf writes holds a model card (README.md) and is ready for `hf upload`.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

if TYPE_CHECKING:
    from aesthetic_jax.checkpoints.lineage import License, Lineage
    from aesthetic_jax.models.config import InternVLConfig
    from aesthetic_jax.models.internvl import Parameters

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "from_hf",
    None,
    'Hugging Face checkpoint to read, in OpenGVLab\'s layout or "-hf": a directory, OWNER/NAME or '
    "hf://OWNER/NAME@REVISION",
    flag_values=FLAGS,
)
flags.DEFINE_string("to", None, "run directory to write", flag_values=FLAGS)
flags.DEFINE_string(
    "from",
    None,
    "run directory (its newest checkpoint), or one of its checkpoints",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "to_hf", None, 'directory to write, a Hugging Face checkpoint ("-hf")', flag_values=FLAGS
)
flags.DEFINE_string(
    "to_peft", None, "directory to write, a PEFT adapter of the LoRA matrices", flag_values=FLAGS
)
flags.DEFINE_string(
    "source",
    None,
    "with --to_hf: checkpoint whose tokenizer and processor files are copied (default: the run's "
    "own tokenizer files); with --to_peft: base checkpoint that the adapter names",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "type to store parameters in", flag_values=FLAGS
)
flags.DEFINE_string(
    "metrics",
    None,
    "with --to_hf: metrics.json of `evaluate`, for the model card",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "base_model",
    None,
    "with --to_hf: base model as OWNER/NAME, for the model card (default: where the runs started)",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "license",
    None,
    "with --to_hf: licence such as apache-2.0, for the model card (default: the base model's)",
    flag_values=FLAGS,
)

_DIRECTIONS = ({"from_hf", "to"}, {"from", "to_hf"}, {"from", "to_peft"})
_CARD_FLAGS = ("metrics", "base_model", "license")


def main(arguments: flags.FlagValues) -> None:
    """Checks which flags go together, then converts.

    Raises:
        UserError: flags that don't go together, a checkpoint that can't be read, or a target that
            is taken.
    """
    given = {name for name in FLAGS if arguments[name].value} - {"dtype"}
    if given & {name for direction in _DIRECTIONS for name in direction} not in _DIRECTIONS:
        raise UserError(
            "convert: give --from_hf=DIR with --to=DIR, or --from=DIR with --to_hf=DIR or "
            "--to_peft=DIR"
        )
    if "source" in given and "from_hf" in given:
        raise UserError("--source: goes with --from alone; --from_hf has its own tokenizer")
    if (extra := sorted(given & set(_CARD_FLAGS))) and "to_hf" not in given:
        raise UserError(f"--{extra[0]}: goes with --to_hf alone, for the model card")
    if "from_hf" in given:
        _import(arguments.from_hf, arguments.to, arguments.dtype)
    elif "to_hf" in given:
        _export(arguments)
    else:
        _export_adapter(arguments)


def _import(name: str, target: str, dtype: str) -> None:
    """Writes a run whose only checkpoint is a Hugging Face model."""
    from aesthetic_jax.checkpoints import huggingface, runs
    from aesthetic_jax.checkpoints.hf_write import check_free
    from aesthetic_jax.checkpoints.hub import local_checkpoint
    from aesthetic_jax.checkpoints.lineage import describe_base, write_base

    check_free(target)
    source = local_checkpoint(name)
    config = huggingface.read_config(source)
    parameters = huggingface.load_parameters(source, config, dtype)
    with _removed_on_failure(target):
        runs.save_model(target, config, parameters, source)
        write_base(target, describe_base(name, source))
    print(target)


def _export(arguments: flags.FlagValues) -> None:
    """Writes a Hugging Face checkpoint with a model card."""
    import jax

    from aesthetic_jax.checkpoints import huggingface, runs
    from aesthetic_jax.checkpoints.hf_write import check_free
    from aesthetic_jax.checkpoints.hub import local_checkpoint

    run, target = require(arguments, "from"), require(arguments, "to_hf")
    check_free(target)
    origin = _read_origin(arguments)
    source = local_checkpoint(arguments.source) if arguments.source else None
    model = runs.load_model(run)
    parameters = jax.tree.map(lambda x: x.astype(arguments.dtype), model.parameters)
    source = source or str(runs.run_directory(run) / "tokenizer")
    card = _render_card(target, model.architecture, parameters, source, origin)
    huggingface.save_parameters(parameters, model.architecture, target, source, card)
    if origin.license is None:
        logging.warning("%s/README.md: names no licence; add it, or use --license", target)
    print(target)


def _export_adapter(arguments: flags.FlagValues) -> None:
    """Writes a PEFT adapter."""
    import jax

    from aesthetic_jax.checkpoints import peft, runs
    from aesthetic_jax.checkpoints.hf_write import check_free

    run, target = require(arguments, "from"), require(arguments, "to_peft")
    check_free(target)
    if not runs.read_architecture(str(runs.run_directory(run))).lora_rank:
        raise UserError(
            f"--from: {run} was trained without LoRA, so there is no adapter; export it with "
            "--to_hf"
        )
    model = runs.load_model(run)
    parameters = jax.tree.map(lambda x: x.astype(arguments.dtype), model.parameters)
    peft.save_adapter(parameters, model.architecture, target, arguments.source or "")
    print(target)


class _Origin(NamedTuple):
    """What a model card says beside the model itself."""

    lineage: "Lineage"
    license: "License | None"
    metrics: dict[str, Any] | None


def _read_origin(arguments: flags.FlagValues) -> _Origin:
    """Reads the run's lineage and the files and names that flags give."""
    from aesthetic_jax.checkpoints.hub import parse_hub_name
    from aesthetic_jax.checkpoints.lineage import BaseModel, License, trace

    if arguments.license and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", arguments.license):
        raise UserError(f"--license: '{arguments.license}' is no identifier such as apache-2.0")
    if arguments.base_model and not parse_hub_name(arguments.base_model):
        raise UserError(f"--base_model: '{arguments.base_model}' is not OWNER/NAME")
    metrics = _read_metrics(arguments.metrics) if arguments.metrics else None
    lineage = trace(require(arguments, "from"))
    license_ = lineage.base.license if lineage.base else None
    if arguments.license:
        license_ = License(arguments.license)
    if arguments.base_model:
        lineage = lineage._replace(base=BaseModel(arguments.base_model))
    return _Origin(lineage, license_, metrics)


def _read_metrics(path: str) -> dict[str, Any]:
    """Reads a metrics.json of `evaluate`."""
    from etils import epath

    mend = "name the metrics.json that `aesthetic-jax evaluate --out=DIR` wrote"
    try:
        metrics = json.loads(epath.Path(path).read_text())
        rows = [metrics["overall"], *metrics["dimensions"].values()]
        entries = [entry for row in rows for entry in row.values()]
        numbers = [entry[bound] for entry in entries for bound in ("value", "low", "high")]
        valid = all(isinstance(x, (int, float)) for x in [metrics["num_samples"], *numbers])
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        valid, metrics = False, {}
    if not valid:
        raise UserError(f"{path}: does not hold metrics with intervals; {mend}")
    return metrics


def _render_card(
    target: str,
    architecture: "InternVLConfig",
    parameters: "Parameters",
    source: str,
    origin: _Origin,
) -> str:
    from etils import epath
    from jax.tree_util import keystr, tree_leaves_with_path

    from aesthetic_jax.checkpoints.model_card import CardFacts, render_card

    sizes = {keystr(path): x.size for path, x in tree_leaves_with_path(parameters)}
    facts = CardFacts(
        name=epath.Path(target).name,
        num_parameters=sum(size for name, size in sizes.items() if "lora_" not in name),
        dtype=parameters["language"]["embedding"].dtype.name,
        tile_size=architecture.vision.image_size,
        tokens_per_tile=architecture.tokens_per_tile,
        has_processor=_has_processor(source),
        lineage=origin.lineage,
        license=origin.license,
        metrics=origin.metrics,
    )
    return render_card(facts)


def _has_processor(folder: str) -> bool:
    """Whether transformers' AutoProcessor opens the files; those of OpenGVLab's layout lack it."""
    from etils import epath

    files = [epath.Path(folder) / f"{name}_config.json" for name in ("processor", "preprocessor")]
    return any(file.exists() and "processor_class" in file.read_text() for file in files)


@contextlib.contextmanager
def _removed_on_failure(target: str) -> Iterator[None]:
    """Removes a directory that `check_free` found to be free if writing to it fails."""
    from etils import epath

    try:
        yield
    except BaseException:
        if epath.Path(target).exists():
            epath.Path(target).rmtree()
        raise
