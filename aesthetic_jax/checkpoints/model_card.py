"""The text of an exported model's card (README.md); reads and writes no files."""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from aesthetic_jax.checkpoints.lineage import License, Lineage, Stage

_PLAIN_YAML = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")  # strings that need no quotes
_ABSOLUTE = re.compile(r"(/|~|[A-Za-z]:[\\/]|[a-z0-9]+://)")
_DATA_PATHS = ("manifest", "data_dir", "table")
_METRICS = {
    "exact": "exact match",
    "dpa": "partial credit (DPA)",
    "jaccard": "Jaccard",
    "per_option": "per option",
    "answered": "answered",
}
_TAGS = ("internvl", "image-screening", "aesthetic_jax")

_INTRODUCTION = """\
This model screens generated product images. Given an original photo and several generated images,
it reasons about one dimension (appearance deformation, physical shadow, placement layout or
extension rationality) and names the images that pass: `<think>...</think><answer>A,C</answer>`, or
`<answer>None</answer>`. The method is that of
[Image Aesthetic Reasoning via HCM-GRPO](https://arxiv.org/abs/2511.10055), reimplemented in JAX.
"""


class CardFacts(NamedTuple):
    """The facts in a model card."""

    name: str  # of the exported directory
    num_parameters: int
    dtype: str
    tile_size: int  # pixels
    tokens_per_tile: int
    has_processor: bool  # the directory holds the base model's image processor
    lineage: Lineage
    license: License | None
    metrics: dict[str, Any] | None = None  # metrics.json of `evaluate`


def render_card(facts: CardFacts) -> str:
    """Renders the README.md that goes with an exported model: YAML front matter, then Markdown.

    It names files and folders without their paths.
    """
    sections = [
        _front_matter(facts),
        f"# {facts.name}\n\n{_INTRODUCTION}",
        f"## Base model\n\n{_base(facts)}",
        f"## Data and method\n\n{_training(facts.lineage.stages)}",
        f"## Results\n\n{_results(facts.metrics)}",
        f"## How to load it\n\n{_usage(facts)}",
        _configs(facts.lineage.stages),
        f"## Licence\n\n{_license_text(facts)}",
    ]
    return "\n".join(section for section in sections if section)


def method_name(config: dict[str, Any]) -> str:
    """Names the method of a resolved training config: SFT, GRPO, DPA-GRPO or HCM-GRPO."""
    if config.get("method") != "grpo":
        return "SFT"
    if (config.get("hard_cases") or {}).get("mode", "off") != "off":
        return "HCM-GRPO"
    return "GRPO" if (config.get("reward") or {}).get("variant", "exact") == "exact" else "DPA-GRPO"


def _front_matter(facts: CardFacts) -> str:
    base = facts.lineage.base
    license_ = facts.license
    fields = {
        "license": license_ and license_.identifier,
        "license_name": license_ and license_.name,
        "license_link": license_ and license_.link,
        "base_model": base.name if base and "/" in base.name else None,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    lines = [f"{name}: {_yaml(value)}" for name, value in fields.items() if value]
    methods = [method_name(stage.config).lower() for stage in facts.lineage.stages]
    tags = [f"- {_yaml(tag)}" for tag in dict.fromkeys([*_TAGS, *methods])]
    return "\n".join(["---", *lines, "tags:", *tags, "---", ""])


def _yaml(text: str) -> str:
    return text if _PLAIN_YAML.fullmatch(text) else json.dumps(text)


def _base(facts: CardFacts) -> str:
    base, size = facts.lineage.base, f"{facts.num_parameters / 1e6:,.1f} million parameters"
    if facts.lineage.from_scratch:
        return f"None: trained from random parameters. {size}, stored as {facts.dtype}.\n"
    if base is None:
        return f"Not recorded. {size}, stored as {facts.dtype}.\n"
    link = f"[{base.name}](https://huggingface.co/{base.name})" if "/" in base.name else base.name
    return f"{link}. {size}, stored as {facts.dtype}.\n"


def _training(stages: Iterable[Stage]) -> str:
    rows = []
    for number, stage in enumerate(stages, 1):
        config = stage.config
        data = config.get("data") or {}
        source = _base_name(data.get("manifest") or data.get("data_dir") or "")
        count = f", {stage.num_samples:,} training samples" if stage.num_samples else ""
        rows.append(f"| {number} | {method_name(config)} | {source}{count} | {_recipe(config)} |")
    if not rows:
        return "Not recorded: the export had no training run to read.\n"
    head = ["| stage | method | data | settings |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _recipe(config: dict[str, Any]) -> str:
    """A stage's main settings in a few words."""
    sections = {name: config.get(name) or {} for name in ("model", "optimizer", "grpo", "reward")}
    settings = {
        "{} steps": config.get("num_steps"),
        "{} prompts per step": config.get("batch_size"),
        "learning rate {}": sections["optimizer"].get("learning_rate"),
        "{} completions per prompt": sections["grpo"].get("num_generations"),
        "{} loss": sections["grpo"].get("loss_type"),
        "{} reward": sections["reward"].get("variant"),
        "LoRA of rank {}, merged": sections["model"].get("lora_rank"),
    }
    return ", ".join(form.format(value) for form, value in settings.items() if value)


def _results(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return "Not evaluated.\n"
    rows = {
        **{name.replace("_", " "): row for name, row in metrics.get("dimensions", {}).items()},
        "**overall**": metrics["overall"],
        **{
            f"chance: {name.replace('_', ' ')}": row
            for name, row in metrics.get("chance", {}).items()
        },
    }
    columns = [name for name in _METRICS if name in metrics["overall"]]
    lines = [
        f"Percent of {metrics['num_samples']:,} questions, with 95 % bootstrap intervals.\n",
        "| | " + " | ".join(_METRICS[name] for name in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for label, row in rows.items():
        cells = [_cell(row[name]) if name in row else "" for name in columns]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(entry: dict[str, float]) -> str:
    value, low, high = (100 * entry[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _usage(facts: CardFacts) -> str:
    repo, run = f"OWNER/{facts.name}", f"runs/{facts.name}"
    reader = "AutoProcessor" if facts.has_processor else "AutoTokenizer"
    return f"""\
With transformers:

```python
from transformers import AutoModelForImageTextToText, {reader}

model = AutoModelForImageTextToText.from_pretrained("{repo}")
{reader.removeprefix("Auto").lower()} = {reader}.from_pretrained("{repo}")
```

Each tile has {facts.tile_size} x {facts.tile_size} pixels, normalised with ImageNet's mean and
deviation, and takes {facts.tokens_per_tile} `<IMG_CONTEXT>` tokens.

With aesthetic_jax, which also builds the prompts:

```python
import aesthetic_jax

model = aesthetic_jax.load_pretrained("{repo}")
logits = model(input_ids, pixel_values, attention_mask)
```

```bash
aesthetic-jax convert --from_hf={repo} --to={run}
aesthetic-jax screen --checkpoint={run} --original=o.jpg --candidates=a.jpg,b.jpg
```
"""


def _configs(stages: Iterable[Stage]) -> str:
    """The resolved config of every stage, folded."""
    blocks = []
    for stage in stages:
        versions = {name: stage.versions[name] for name in sorted(stage.versions)}
        content = {"config": _without_folders(stage.config), "versions": versions}
        if stage.git_commit:
            content["git_commit"] = stage.git_commit
        blocks.append(
            f"<details><summary>{stage.name}: {method_name(stage.config)}</summary>\n\n"
            f"```json\n{json.dumps(content, indent=2)}\n```\n\n</details>\n"
        )
    return "\n".join(["## Configuration\n", *blocks]) if blocks else ""


def _without_folders(value: Any, name: str = "") -> Any:
    """A config with base names in place of paths."""
    if isinstance(value, dict):
        return {key: _without_folders(inner, key) for key, inner in value.items()}
    if isinstance(value, str) and (name in _DATA_PATHS or _ABSOLUTE.match(value)):
        return _base_name(value)
    return value


def _base_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _license_text(facts: CardFacts) -> str:
    license_ = facts.license
    if license_ is None:
        base = facts.lineage.base
        return f"That of the base model, {base.name}.\n" if base else "None is given.\n"
    label = license_.name or license_.identifier
    label = f"[{label}]({license_.link})" if license_.link else label
    return f"{label}.\n"
