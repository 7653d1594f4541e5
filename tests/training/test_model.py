"""The model that a config or checkpoint selects, and whose prompt settings apply."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from aesthetic_jax.checkpoints import huggingface, runs
from aesthetic_jax.data.tokenizer import save_tokenizer, train_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import PRESETS
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training.config import base_config, sft_config
from aesthetic_jax.training.mesh import make_mesh
from aesthetic_jax.training.model import (
    adopt_prompt_settings,
    config_architecture,
    describe,
    initial_model,
    is_hugging_face,
    read_preprocessor,
    tokenizer_directory,
)
from aesthetic_jax.training.provenance import write_config

TEXTS = ["Which of them are whole? Reply as <think>reasoning</think>."]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory and a Hugging Face directory with the same parameters."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(TEXTS, 300)
    save_tokenizer(tokenizer, str(folder / "tokenizer"))
    preset = PRESETS["tiny"]
    text = dataclasses.replace(preset.text, vocab_size=tokenizer.size)
    architecture = dataclasses.replace(preset, text=text, image_token=tokenizer.image)
    model = InternVL(architecture, rngs=nnx.Rngs(3))
    parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    runs.save_model(str(folder / "run"), architecture, parameters, str(folder / "tokenizer"))
    huggingface.save_parameters(
        parameters, architecture, str(folder / "hf"), str(folder / "tokenizer")
    )
    return folder, parameters


def make_config(**changes):
    config = sft_config()
    config.model.preset, config.model.dtype, config.model.remat = "tiny", "float32", "none"
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("kind", ["run", "run/checkpoints/0", "hf"])
def test_every_kind_of_init_from_gives_the_same_model(made, mesh, kind):
    folder, parameters = made
    config = make_config(init_from=str(folder / kind))
    loaded = initial_model(config, lambda: (), mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded.parameters, parameters)
    assert loaded.tokenizer.encode(TEXTS[0])
    assert loaded.architecture == config_architecture(config)
    assert is_hugging_face(str(folder / kind)) == (kind == "hf")
    assert read_preprocessor(config).tokenizer.size == loaded.tokenizer.size


def test_a_model_from_scratch_trains_its_tokenizer_and_depends_on_the_seed(mesh):
    first, again, other = (
        initial_model(make_config(seed=seed), lambda: iter(TEXTS), mesh) for seed in (0, 0, 1)
    )
    kernels = [x.parameters["projector"]["up"]["kernel"] for x in (first, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert first.architecture.image_token == first.tokenizer.image
    assert first.path == ""


def test_lora_is_added_to_a_loaded_model(made, mesh):
    folder, parameters = made
    config = make_config(**{"init_from": str(folder / "run"), "model.lora_rank": 2})
    layers = initial_model(config, lambda: (), mesh).parameters["language"]["layers"]
    assert layers["query"]["lora_a"].shape[-1] == 2
    assert not layers["query"]["lora_b"].any()
    original = parameters["language"]["layers"]["query"]["kernel"]
    np.testing.assert_array_equal(layers["query"]["kernel"], original)


def test_prompt_settings_are_the_runs(made, tmp_path):
    folder, _ = made
    run = tmp_path / "run"
    run.mkdir()
    trained = base_config()
    trained.data.system_prompt, trained.data.max_tiles = "Be strict.", 3
    write_config(trained, str(run))
    config = base_config()
    line = adopt_prompt_settings(config, str(run / "checkpoints" / "4"))
    assert (config.data.system_prompt, config.data.max_tiles) == ("Be strict.", 3)
    assert "\n" not in line
    for word in ("system_prompt 'Be strict.' instead of ''", "max_tiles 3 instead of 1"):
        assert word in line
    assert adopt_prompt_settings(config, str(run)) is None
    assert adopt_prompt_settings(config, str(folder / "run")) is None  # `convert` made it
    assert config.data.max_tiles == 3
    (run / "config.json").write_text(json.dumps({"versions": {}}))
    with pytest.raises(UserError, match=r"config\.json: can't be read"):
        adopt_prompt_settings(config, str(run))


def test_describe_counts_what_is_trained():
    config = make_config(**{"model.preset": "internvl3_2b"})
    assert describe(config).startswith("2,088,957,440 parameters: 1,784,945,152 trained")
    config.model.freeze = ()
    assert "2,088,957,440 trained, 0 frozen" in describe(config)


def test_tokenizer_files_lie_beside_the_model(made):
    folder, _ = made
    assert tokenizer_directory(str(folder / "hf")) == str(folder / "hf")
    for path in ("run", "run/checkpoints/0"):
        assert tokenizer_directory(str(folder / path)) == str(folder / "run" / "tokenizer")
