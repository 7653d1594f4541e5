"""The model against transformers' InternVL: stored outputs without torch, side by side with it."""

import dataclasses
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

import aesthetic_jax
from aesthetic_jax.checkpoints import hf_write, huggingface
from aesthetic_jax.checkpoints.hf_names import normalise
from aesthetic_jax.checkpoints.peft import save_adapter
from aesthetic_jax.models.internvl import InternVL

GOLDEN = Path(__file__).with_name("golden_forward.npz")
MAKE = runpy.run_path(str(Path(__file__).with_name("make_golden_forward.py")))
TOWERS = pytest.mark.parametrize("tower", ["300m", "6b"])


def forward(model):
    """A function (ids, mask, tiles) -> vision features, projector output and logits."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(ids, mask, tiles):
        model = nnx.merge(graph, state)
        return model.vision(tiles), model.image_features(tiles), model(ids, tiles, mask)

    return lambda *inputs: [np.asarray(x) for x in run(*inputs)]


@TOWERS
def test_golden_forward(tower, tmp_path):
    golden = dict(np.load(GOLDEN))
    prefix = f"{tower}/tensors/"
    tensors = {
        name.removeprefix(prefix): x.astype(np.float32)
        for name, x in golden.items()
        if name.startswith(prefix)
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(str(golden[f"{tower}/config"]))
    model = aesthetic_jax.load_pretrained(str(tmp_path))
    mask = golden["mask"]
    run = forward(model)
    features, projected, logits = run(golden["ids"], mask, golden["tiles"])
    np.testing.assert_allclose(features, golden[f"{tower}/vision"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(projected, golden[f"{tower}/projected"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits[mask == 1], golden[f"{tower}/logits"], atol=1e-4, rtol=0)
    assert 1 < logits[mask == 1].std() < 3
    # The comparison covers the image only if it reaches the logits.
    blind = run(golden["ids"], mask, np.zeros_like(golden["tiles"]))[2]
    assert np.abs(blind - logits)[0, -1].max() > 0.1
    assert GOLDEN.stat().st_size < 1_000_000


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def transformers_logits(folder, ids, mask, tiles):
    """Opens a directory with transformers, which must report no missing or unexpected tensors."""
    from transformers import InternVLForConditionalGeneration

    model, info = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert {name: list(found) for name, found in info.items() if found} == {}
    return MAKE["run"](model.eval(), ids, mask, tiles)[2]


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
@TOWERS
def test_import_and_export(torch, tower, tied, tmp_path):
    inputs = MAKE["make_inputs"]()
    valid = inputs[1] == 1
    reference = MAKE["make_model"](tower, tied)
    reference.save_pretrained(tmp_path / "theirs")
    model = aesthetic_jax.load_pretrained(str(tmp_path / "theirs"))
    assert model.config.text.tied_head == tied
    expected = MAKE["run"](reference, *inputs)
    for name, ours, theirs in zip(
        ("vision", "projector", "logits"), forward(model)(*inputs), expected, strict=True
    ):
        error = np.abs(ours - theirs)[valid if name == "logits" else ...].max()
        print(f"{tower} tied={tied} {name}: largest difference {error:.1e}")
        assert error < 1e-4, name
    aesthetic_jax.save_pretrained(model, str(tmp_path / "ours"))
    again = transformers_logits(tmp_path / "ours", *inputs)
    np.testing.assert_allclose(again[valid], expected[2][valid], atol=1e-5, rtol=0)


@pytest.mark.parity
def test_sharded_import_and_export(torch, tmp_path, monkeypatch):
    inputs = MAKE["make_inputs"]()
    valid = inputs[1] == 1
    reference = MAKE["make_model"]()
    reference.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    model = aesthetic_jax.load_pretrained(str(tmp_path / "theirs"))
    monkeypatch.setattr(hf_write, "_SHARD_BYTES", 100_000)
    aesthetic_jax.save_pretrained(model, str(tmp_path / "ours"))
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 1
    again = transformers_logits(tmp_path / "ours", *inputs)
    np.testing.assert_allclose(
        again[valid], MAKE["run"](reference, *inputs)[2][valid], atol=1e-5, rtol=0
    )


@pytest.mark.parity
@TOWERS
def test_in_memory_names(torch, tower, tmp_path):
    inputs = MAKE["make_inputs"]()
    reference = MAKE["make_model"](tower)
    save_file(
        {k: v.numpy() for k, v in reference.state_dict().items()}, tmp_path / "model.safetensors"
    )
    reference.config.save_pretrained(tmp_path)
    logits = forward(aesthetic_jax.load_pretrained(str(tmp_path)))(*inputs)[2]
    valid = inputs[1] == 1
    np.testing.assert_allclose(
        logits[valid], MAKE["run"](reference, *inputs)[2][valid], atol=1e-4, rtol=0
    )


@pytest.mark.parity
@TOWERS
def test_bfloat16_round_trip_is_bit_identical(torch, tower, tmp_path):
    MAKE["make_model"](tower).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model = aesthetic_jax.load_pretrained(str(tmp_path / "theirs"), dtype="bfloat16")
    aesthetic_jax.save_pretrained(model, str(tmp_path / "ours"))
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
        assert (x.dtype.name, x.shape, x.tobytes()) == (
            "bfloat16",
            ours[name].shape,
            ours[name].tobytes(),
        ), name


@pytest.mark.parity
@TOWERS
def test_parameter_gradients(torch, tower, tmp_path):
    ids, mask, tiles = MAKE["make_inputs"]()
    reference = MAKE["make_model"](tower)
    reference.save_pretrained(tmp_path / "theirs")
    weights = (
        np.random.default_rng(2).normal(size=(*ids.shape, 96)).astype(np.float32) * mask[..., None]
    )

    pixels = torch.tensor(tiles.transpose(0, 3, 1, 2))
    logits = reference(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), pixel_values=pixels
    ).logits
    # Weighs every log-probability: cross-entropy alone would depend on few of them.
    valid = torch.tensor(mask == 1)
    (torch.log_softmax(logits, -1)[valid] * torch.tensor(weights)[valid]).sum().backward()
    expected = {name: x.grad.numpy() for name, x in reference.named_parameters()}

    model = aesthetic_jax.load_pretrained(str(tmp_path / "theirs"))
    graph, state = nnx.split(model)

    def loss(parameters):
        logits = nnx.merge(graph, parameters)(jnp.asarray(ids), tiles, mask)
        return (jax.nn.log_softmax(logits) * weights).sum()

    gradients = jax.jit(jax.grad(loss))(nnx.to_pure_dict(state))
    # Saved as if they were parameters, gradients get torch's names and shapes.
    huggingface.save_parameters(gradients, model.config, str(tmp_path / "gradients"))
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    assert len(ours) == len(expected)
    errors = {}
    for name, x in expected.items():
        difference = ours[normalise(name)] - x
        # This bias adds the same number to every score of a row, so its gradient is 0.
        if re.search(r"vision_tower.*k_proj\.bias", name):
            assert np.abs(difference).max() < 1e-3, name
        else:
            errors[name] = np.linalg.norm(difference) / np.linalg.norm(x)
    worst = max(errors, key=errors.get)
    print(f"{tower}: largest relative error of a gradient {errors[worst]:.1e}, of {worst}")
    assert errors[worst] < 1e-4, worst


@pytest.mark.parity
def test_peft_adapter(torch, tmp_path):
    """The exported adapter, opened with PEFT on transformers' model, computes the same logits."""
    peft = pytest.importorskip("peft")
    inputs = MAKE["make_inputs"]()
    valid = inputs[1] == 1
    reference = MAKE["make_model"]()
    reference.save_pretrained(tmp_path / "base")
    base = aesthetic_jax.load_pretrained(str(tmp_path / "base"))
    config = dataclasses.replace(base.config, lora_rank=4, lora_alpha=6.0)
    graph, state = nnx.split(InternVL(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    flat |= {
        path: rng.normal(scale=0.2, size=x.shape).astype(np.float32)
        for path, x in flat.items()
        if "lora" in path[-1]
    }
    flat |= traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(base, nnx.Param)))
    parameters = traverse_util.unflatten_dict(flat)
    ours = forward(nnx.merge(graph, parameters))(*inputs)[2]
    assert np.abs(ours - forward(base)(*inputs)[2])[valid].max() > 0.1
    save_adapter(parameters, config, str(tmp_path / "adapter"), str(tmp_path / "base"))
    theirs = MAKE["run"](
        peft.PeftModel.from_pretrained(reference, tmp_path / "adapter").base_model.model.eval(),
        *inputs,
    )
    np.testing.assert_allclose(ours[valid], theirs[2][valid], atol=1e-4, rtol=0)
