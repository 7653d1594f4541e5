"""configs/README.md lists every config field with its default."""

import ast
import pathlib
import re

from aesthetic_jax.training.config import base_config, grpo_config

README = pathlib.Path(__file__).parents[1] / "configs" / "README.md"


def flatten(fields, prefix=""):
    flat = {}
    for name, value in fields.items():
        is_section = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return flat


def test_every_field_is_listed_with_its_default():
    text = README.read_text()
    tables = text[text.index("### Run") : text.index("## Rewards")]
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", tables, re.MULTILINE)
    listed = {name: ast.literal_eval(default) for name, default in rows}
    grpo_fields = {
        name: value for name, value in grpo_config().items() if name not in base_config()
    }
    expected = flatten(base_config().to_dict())
    expected |= flatten({x: value.to_dict() for x, value in grpo_fields.items()})
    assert listed == expected
