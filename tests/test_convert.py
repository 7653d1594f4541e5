"""The convert command, both ways."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import aesthetic_jax
from aesthetic_jax.__main__ import main
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
        TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=tokenizer.size),
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
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((published / name).read_text()) == json.loads((out / name).read_text()), name


def test_one_checkpoint_of_a_run_and_another_source(published, tmp_path):
    run, out, source = tmp_path / "run", tmp_path / "out", tmp_path / "source"
    convert(f"--from_hf={published}", f"--to={run}")
    source.mkdir()
    (source / "tokenizer.json").write_bytes((published / "tokenizer.json").read_bytes())
    (source / "preprocessor_config.json").write_text("{}")
    convert(f"--from={run}/checkpoints/0", f"--to_hf={out}", f"--source={source}")
    assert (out / "preprocessor_config.json").exists()
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {np.dtype(np.float32)}
    first, second = aesthetic_jax.load_pretrained(str(published)), aesthetic_jax.load_pretrained(str(out))
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
