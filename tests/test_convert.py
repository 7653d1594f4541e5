"""The convert command, both ways."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import nnx
from safetensors.numpy import load_file

import aesthetic_jax
from aesthetic_jax import convert as convert_module
from aesthetic_jax.__main__ import main
from aesthetic_jax.checkpoints import runs
from aesthetic_jax.command_line import parse_flags
from aesthetic_jax.data.tokenizer import save_tokenizer, train_tokenizer
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hugging Face directory with weights in bfloat16, and a tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    tokenizer = train_tokenizer(["which image passes"], 300)
    save_tokenizer(tokenizer, str(folder / "tokenizer"))
    config = InternVLConfig(
        VisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=28, patch_size=7),
        TextConfig(
            width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=tokenizer.size
        ),
        image_token=tokenizer.image,
    )
    graph, state = nnx.split(InternVL(config, rngs=nnx.Rngs(0)))
    parameters = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.to_pure_dict(state))
    model = nnx.merge(graph, parameters)
    aesthetic_jax.save_pretrained(model, str(folder / "hf"), source=str(folder / "tokenizer"))
    return folder / "hf"


def convert(*arguments):
    main(["convert", *arguments])


def test_there_and_back(published, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    convert(f"--from_hf={published}", f"--to={run}")
    convert(f"--from={run}", f"--to_hf={out}", "--dtype=bfloat16")
    assert capsys.readouterr().out.splitlines() == [str(run), str(out)]
    before, after = (load_file(folder / "model.safetensors") for folder in (published, out))
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert x.dtype.name == "bfloat16"
        assert x.tobytes() == after[name].tobytes(), name
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert json.loads((published / name).read_text()) == json.loads((out / name).read_text()), (
            name
        )


def test_one_checkpoint_of_a_run_and_another_source(published, tmp_path):
    run, out, source = tmp_path / "run", tmp_path / "out", tmp_path / "source"
    convert(f"--from_hf={published}", f"--to={run}")
    source.mkdir()
    (source / "tokenizer.json").write_bytes((published / "tokenizer.json").read_bytes())
    (source / "preprocessor_config.json").write_text("{}")
    convert(f"--from={run}/checkpoints/0", f"--to_hf={out}", f"--source={source}")
    assert (out / "preprocessor_config.json").exists()
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {
        np.dtype(np.float32)
    }
    first, second = (
        aesthetic_jax.load_pretrained(str(published)),
        aesthetic_jax.load_pretrained(str(out)),
    )
    assert dataclasses.asdict(first.config) == dataclasses.asdict(second.config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from_hf=DIR with --to=DIR"),
        (["--from_hf={hf}"], "--from_hf=DIR with --to=DIR"),
        (["--from_hf={hf}", "--to_hf={tmp}/x"], "--from_hf=DIR with --to=DIR"),
        (["--from_hf={hf}", "--to={tmp}/x", "--source={hf}"], "--source"),
        (["--from_hf={hf}", "--to={tmp}/x", "--dtype=int8"], "dtype"),
        (["--from_hf={tmp}/nowhere", "--to={tmp}/x"], "nowhere"),
        (["--from_hf={hf}", "--to={hf}"], "exists already"),
        (["--from={tmp}/nowhere", "--to_hf={tmp}/x"], "nowhere"),
        (["--from={hf}", "--to_hf={hf}"], "exists already"),
        (["--from={hf}", "--to_hf={tmp}/x", "--to_peft={tmp}/y"], "--to_hf=DIR or --to_peft=DIR"),
        (["--from={hf}", "--to_peft={hf}"], "exists already"),
        (["--from_hf={hf}", "--to={tmp}/x", "--license=mit"], "--license: goes with --to_hf"),
        (["--from={hf}", "--to_peft={tmp}/x", "--metrics=m"], "--metrics: goes with --to_hf"),
        (["--from={hf}", "--to_hf={tmp}/x", "--license=My own"], "--license: 'My own'"),
        (["--from={hf}", "--to_hf={tmp}/x", "--base_model=InternVL3"], "--base_model"),
        (["--from={hf}", "--to_hf={tmp}/x", "--metrics={tmp}/none"], "none: there is no such file"),
        (["--from={hf}", "--to_hf={tmp}/x", "--metrics={hf}/config.json"], "does not hold metrics"),
        (["--from={hf}", "--to_hf={tmp}/x", "--source=a/b/c"], "a/b/c: there is no such directory"),
        (["--from_hf=hf://owner", "--to={tmp}/x"], "hf://owner: is not a model"),
    ],
)
def test_bad_flags_end_in_one_line(arguments, message, published, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        convert(*(argument.format(hf=published, tmp=tmp_path) for argument in arguments))
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_export_is_ready_to_upload(published, tmp_path, capsys):
    """The card names the base model that --from_hf read, its licence and the metrics."""
    base = shutil.copytree(published, tmp_path / "InternVL3-2B")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    run, out, metrics = tmp_path / "run", tmp_path / "screener", tmp_path / "metrics.json"
    row = {"exact": {"value": 0.5, "low": 0.25, "high": 0.75}}
    metrics.write_text(
        json.dumps({"num_samples": 8, "overall": row, "dimensions": {}, "chance": {"uniform": row}})
    )
    convert(f"--from_hf={base}", f"--to={run}")
    convert(f"--from={run}", f"--to_hf={out}", f"--metrics={metrics}")
    card = (out / "README.md").read_text()
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["license"] == "apache-2.0"
    assert "base_model" not in fields
    assert "InternVL3-2B" in card
    assert "| **overall** | 50.0 [25.0, 75.0] |" in card
    assert str(tmp_path) not in card
    assert not capsys.readouterr().err

    second = tmp_path / "second"
    words = ["--base_model=OpenGVLab/InternVL3-2B", "--license=mit"]
    convert(f"--from={run}", f"--to_hf={second}", *words)
    fields = yaml.safe_load((second / "README.md").read_text().split("---\n")[1])
    assert (fields["license"], fields["base_model"]) == ("mit", "OpenGVLab/InternVL3-2B")


def test_an_export_without_a_licence_says_so(published, tmp_path, caplog):
    convert(f"--from_hf={published}", f"--to={tmp_path / 'run'}")
    convert(f"--from={tmp_path / 'run'}", f"--to_hf={tmp_path / 'out'}")
    assert "names no licence" in caplog.text
    assert "license" not in (tmp_path / "out" / "README.md").read_text().split("---\n")[1]


def test_a_failed_import_leaves_nothing(published, tmp_path, monkeypatch):
    def fail(path, *_):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model.json").write_text("{}")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(runs, "save_model", fail)
    words = [f"--from_hf={published}", f"--to={tmp_path / 'run'}"]
    parse_flags(convert_module.FLAGS, "convert", words)
    with pytest.raises(OSError, match="No space left"):
        convert_module.main(convert_module.FLAGS)
    assert not list(tmp_path.iterdir())
