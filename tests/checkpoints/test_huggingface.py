"""Checkpoints in every published layout, and errors of faulty ones."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

import aesthetic_jax
from aesthetic_jax.checkpoints import hf_write, huggingface
from aesthetic_jax.checkpoints.hf_names import entries
from aesthetic_jax.data.tokenizer import save_tokenizer, train_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL, abstract_model

SMALL = InternVLConfig(
    VisionConfig(width=24, layers=2, heads=4, mlp_width=40, image_size=28, patch_size=7),
    TextConfig(width=16, layers=3, heads=4, kv_heads=2, mlp_width=36, vocab_size=50),
    image_token=7,
)
LARGE_TOWER = dataclasses.replace(
    SMALL, vision=dataclasses.replace(SMALL.vision, norm="rms_norm", qkv_bias=False, qk_norm=True)
)
TIED = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, tied_head=True))
WIDE_HEADS = dataclasses.replace(
    SMALL, text=dataclasses.replace(SMALL.text, head_width=6, rope_theta=5e5)
)
CONFIGS = pytest.mark.parametrize(
    "config", [SMALL, LARGE_TOWER, TIED, WIDE_HEADS], ids=["300m", "6b", "tied", "heads"]
)


def make_model(config=SMALL, dtype=np.float32, seed=0):
    """A model whose parameters are all noise, so that mix-ups show."""
    graph, state = nnx.split(nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), nnx.to_pure_dict(state)
    )
    return nnx.merge(graph, noise)


def parameters(model):
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)), sep=".")


def assert_same(left, right):
    left, right = parameters(left), parameters(right)
    assert left.keys() == right.keys()
    for name, x in left.items():
        assert x.dtype == right[name].dtype, name
        assert np.asarray(x).tobytes() == np.asarray(right[name]).tobytes(), name


@pytest.fixture
def saved(tmp_path):
    """A model and the directory it was saved to."""
    model, folder = make_model(), tmp_path / "saved"
    aesthetic_jax.save_pretrained(model, str(folder))
    return model, folder


def edit_tensors(folder: Path, edit):
    """Replaces the tensors of a directory's model.safetensors; the safetensors library writes."""
    tensors = edit(load_file(folder / "model.safetensors"))
    save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def edit_config(folder: Path, **fields):
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        *parents, last = name.split("__")
        section = config
        for parent in parents:
            section = section[parent]
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    (folder / "config.json").write_text(json.dumps(config))


# The inverse of transformers' converter: independent of the table under test.
TO_ORIGINAL = [
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
    (r"^vision_tower\.", "vision_model."),
    (r"cls_token", "class_embedding"),
    (r"position_embeddings", "position_embedding"),
    (r"patch_embeddings\.projection", "patch_embedding"),
    (r"lambda_", "ls"),
    (r"attention\.projection_layer", "attn.proj"),
    (r"attention\.", "attn."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"^multi_modal_projector\.linear_1", "mlp1.1"),
    (r"^multi_modal_projector\.linear_2", "mlp1.3"),
]


def to_original(tensors):
    renamed = {}
    for name, x in tensors.items():
        if not name.startswith("language_model"):
            for pattern, new in TO_ORIGINAL:
                name = re.sub(pattern, new, name)  # noqa: PLW2901
        renamed[name] = x
    for name in [name for name in renamed if ".q_proj." in name and name.startswith("vision")]:
        parts = [renamed.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        renamed[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    return renamed


def to_in_memory(tensors):
    swaps = [
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ]

    def rename(name):
        old, new = next(swap for swap in swaps if name.startswith(swap[0]))
        return new + name.removeprefix(old)

    return {rename(name): x for name, x in tensors.items()}


def original_config(config):
    vision, text = config.vision, config.text
    return {
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "force_image_size": vision.image_size,
        "ps_version": "v2",
        "select_layer": -1,
        "tie_word_embeddings": False,
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "intermediate_size": text.mlp_width,
            "vocab_size": text.vocab_size,
            "rms_norm_eps": text.norm_epsilon,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "hidden_act": "silu",
            "use_sliding_window": False,
        },
        "vision_config": {
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "intermediate_size": vision.mlp_width,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "norm_type": vision.norm,
            "layer_norm_eps": 1e-6,
            "qkv_bias": vision.qkv_bias,
            "qk_normalization": vision.qk_norm,
            "initializer_factor": 0.1,
            "hidden_act": "gelu",
        },
        "img_context_token_id": config.image_token,
    }


@CONFIGS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bit_identical(config, dtype, tmp_path):
    model = make_model(config, dtype)
    aesthetic_jax.save_pretrained(model, str(tmp_path / "out"))
    again = aesthetic_jax.load_pretrained(str(tmp_path / "out"), dtype)
    assert_same(model, again)
    assert again.config == dataclasses.replace(config, dtype=dtype)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype.name for x in stored.values()} == {dtype}
    assert ("language_model.lm_head.weight" in stored) != config.text.tied_head


def test_stored_tensors_are_torch_shaped(saved):
    model, folder = saved
    stored, ours = load_file(folder / "model.safetensors"), parameters(model)
    gate = stored["language_model.model.layers.1.mlp.gate_proj.weight"]
    np.testing.assert_array_equal(gate, ours["language.layers.gate.kernel"][1].T)
    conv = stored["vision_tower.embeddings.patch_embeddings.projection.weight"]
    assert conv.shape == (24, 3, 7, 7)
    tile = np.random.default_rng(0).normal(size=(7, 7, 3))
    expected = np.einsum("ochw,hwc->o", conv, tile)
    np.testing.assert_allclose(
        tile.reshape(-1) @ ours["vision.patch_embed.kernel"], expected, atol=1e-4
    )
    assert stored["vision_tower.embeddings.cls_token"].shape == (1, 1, 24)
    assert stored["vision_tower.embeddings.position_embeddings"].shape == (1, 17, 24)


@pytest.mark.parametrize("config", [SMALL, LARGE_TOWER], ids=["300m", "6b"])
@pytest.mark.parametrize("spelling", ["original", "in_memory"])
def test_other_spellings(config, spelling, tmp_path):
    model, folder = make_model(config), tmp_path / "saved"
    aesthetic_jax.save_pretrained(model, str(folder))
    edit_tensors(folder, to_original if spelling == "original" else to_in_memory)
    if spelling == "original":
        (folder / "config.json").write_text(json.dumps(original_config(config)))
    again = aesthetic_jax.load_pretrained(str(folder))
    assert_same(model, again)
    assert again.config == config


def test_load_casts(saved):
    model, folder = saved
    again = aesthetic_jax.load_pretrained(str(folder), dtype="bfloat16")
    assert again.config.dtype == "bfloat16"
    for name, x in parameters(again).items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x, parameters(model)[name].astype(jnp.bfloat16))
    with pytest.raises(UserError, match="float16"):
        aesthetic_jax.load_pretrained(str(folder), dtype="float16")


def test_mesh_replicates(saved):
    model, folder = saved
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    again = aesthetic_jax.load_pretrained(str(folder), mesh=mesh)
    assert_same(model, again)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert all(x.sharding == replicated for x in parameters(again).values())


SPLIT = """
import sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
from flax import nnx
import aesthetic_jax

def parameters(mesh=None):
    model = aesthetic_jax.load_pretrained(sys.argv[1], mesh=mesh)
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(path): x.get_value() for path, x in flat}

whole, split = parameters(), parameters(jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor")))
for name, x in whole.items():
    np.testing.assert_array_equal(split[name], x, err_msg=name)
shards = {name: x.sharding.shard_shape(x.shape) for name, x in split.items()}
shape = whole["language.layers.up.kernel"].shape
assert shards["language.layers.up.kernel"] == (shape[0], shape[1] // 2, shape[2] // 2)
assert shards["language.norm.scale"] == whole["language.norm.scale"].shape
"""


@pytest.mark.parametrize("spelling", ["hf", "original"])
def test_a_mesh_splits_parameters(spelling, tmp_path):
    """Eight devices hold the same values as one."""
    folder = tmp_path / "out"
    aesthetic_jax.save_pretrained(make_model(), str(folder))
    if spelling == "original":
        edit_tensors(folder, to_original)
        (folder / "config.json").write_text(json.dumps(original_config(SMALL)))
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", SPLIT, str(folder)]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_shards_and_index(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_write, "_SHARD_BYTES", 20_000)
    model, folder = make_model(), tmp_path / "sharded"
    aesthetic_jax.save_pretrained(model, str(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found = {name: file for file in files for name in load_file(folder / file)}
    assert found == index["weight_map"]
    sizes = [sum(x.nbytes for x in load_file(folder / file).values()) for file in files]
    assert max(sizes) <= 20_000
    assert index["metadata"]["total_size"] == sum(sizes)
    assert_same(model, aesthetic_jax.load_pretrained(str(folder)))
    (folder / files[1]).unlink()
    with pytest.raises(UserError, match=f"{files[1]}: is missing"):
        aesthetic_jax.load_pretrained(str(folder))


def test_lora_is_merged(tmp_path):
    model = make_model(dataclasses.replace(SMALL, lora_rank=4, lora_alpha=2.0))
    aesthetic_jax.save_pretrained(model, str(tmp_path / "out"))
    merged = aesthetic_jax.load_pretrained(str(tmp_path / "out"))
    before, after = parameters(model), parameters(merged)
    assert not any("lora" in name for name in after)
    base, low, high = (
        before[f"language.layers.down.{name}"][2] for name in ("kernel", "lora_a", "lora_b")
    )
    np.testing.assert_allclose(
        after["language.layers.down.kernel"][2], base + low @ high * 0.5, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(
        after["vision.layers.up.kernel"], before["vision.layers.up.kernel"]
    )


def test_source_files_go_along(tmp_path):
    source = tmp_path / "source"
    tokenizer = train_tokenizer(["which image passes"], 300)
    save_tokenizer(tokenizer, str(source))
    (source / "preprocessor_config.json").write_text('{"size": 28}')
    (source / "pytorch_model.bin").write_bytes(b"")
    text = dataclasses.replace(SMALL.text, vocab_size=tokenizer.size)
    model = make_model(dataclasses.replace(SMALL, text=text, image_token=tokenizer.image))
    aesthetic_jax.save_pretrained(model, str(tmp_path / "out"), source=str(source))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    edit_config(tmp_path / "out", image_token_id=12)  # the tokenizer's id counts
    assert (
        aesthetic_jax.load_pretrained(str(tmp_path / "out")).config.image_token == tokenizer.image
    )

    with pytest.raises(UserError, match="IMG_CONTEXT"):
        aesthetic_jax.save_pretrained(make_model(), str(tmp_path / "other"), source=str(source))
    assert not (tmp_path / "other").exists()


def test_tokenizer_without_image_token_is_refused(saved):
    (saved[1] / "tokenizer.json").write_text(
        '{"added_tokens": [{"id": 0, "content": "<|endoftext|>"}]}'
    )
    with pytest.raises(UserError, match=r"tokenizer\.json: has no token <IMG_CONTEXT>"):
        huggingface.read_config(str(saved[1]))
    (saved[1] / "added_tokens.json").write_text('{"<IMG_CONTEXT>": 9}')
    assert huggingface.read_config(str(saved[1])).image_token == 9


def test_rotary_base_in_both_spellings(saved):
    folder = saved[1]
    edit_config(folder, text_config__rope_parameters=None, text_config__rope_theta=12345.0)
    assert huggingface.read_config(str(folder)).text.rope_theta == 12345.0
    edit_config(
        folder,
        text_config__rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 777.0},
        text_config__rope_theta=None,
    )
    assert huggingface.read_config(str(folder)).text.rope_theta == 777.0


def test_published_2b():
    _, abstract = abstract_model(PRESETS["internvl3_2b"])
    shapes = {path: x.shape for path, x in traverse_util.flatten_dict(abstract).items()}
    hf, original = entries(shapes), entries(shapes, original=True)
    assert len({entry.name for entry in hf}) == 781
    assert len({entry.name for entry in original}) == 685
    assert sum(int(np.prod(entry.shape)) for entry in hf) == 2_088_957_440


@pytest.mark.parametrize(
    "name", ["internvl3_1b", "internvl3_2b", "internvl3_8b", "internvl3_14b", "internvl3_38b"]
)
def test_published_configs_give_the_presets(name, saved):
    folder, preset = saved[1], PRESETS[name]
    (folder / "config.json").write_text(json.dumps(original_config(preset)))
    assert huggingface.read_config(str(folder)) == preset


def test_memory_stays_near_what_is_kept(tmp_path):
    text = TextConfig(width=64, layers=24, heads=4, kv_heads=2, mlp_width=256, vocab_size=1000)
    aesthetic_jax.save_pretrained(
        make_model(dataclasses.replace(SMALL, text=text)), str(tmp_path / "out")
    )
    config = huggingface.read_config(str(tmp_path / "out"))
    tracemalloc.start()
    try:
        kept = huggingface.load_parameters(str(tmp_path / "out"), config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 1.2 * sum(x.nbytes for x in jax.tree.leaves(kept))


# What is wrong with a checkpoint: an edit of the directory, and what the error has to say.
def _pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def _truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _garbage(folder):
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0" + b"not json at all!")


def _tiny_file(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 8)


def _index(name):
    def edit(folder):
        (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
        weight_map = {"lm_head.weight": name.format(folder.parent)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return edit


def _twice(folder):
    edit_tensors(folder, lambda x: x | {"lm_head.weight": x["language_model.lm_head.weight"]})


def _integers(folder):
    name = "language_model.model.norm.weight"
    edit_tensors(folder, lambda x: x | {name: x[name].astype(np.int8)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_pickle, r"pickle checkpoint \(pytorch_model\.bin\)"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"has neither model\.safetensors nor",
        ),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: is no JSON"),
        (
            lambda folder: (folder / "config.json").write_text("[]"),
            r"config\.json: is no JSON object",
        ),
        (_truncate, r"model\.safetensors: has \d+ bytes, its header promises \d+"),
        (_garbage, r"model\.safetensors: is damaged, or no safetensors file"),
        (_tiny_file, r"model\.safetensors: is damaged, or no safetensors file"),
        (
            _index("../model.safetensors"),
            r"index\.json: weight_map names '\.\./model\.safetensors'",
        ),
        (_index("{}/model.safetensors"), r"index\.json: weight_map names"),
        (_index("model.bin"), r"index\.json: weight_map names 'model\.bin'"),
        (_twice, "second time"),
        (_integers, r"1 of a type that is no float: language_model\.model\.norm\.weight is I8"),
        (lambda folder: edit_config(folder, model_type="qwen2_vl"), "model_type 'qwen2_vl'"),
        (lambda folder: edit_config(folder, text_config=None), "lacks 'text_config'"),
        (
            lambda folder: edit_config(folder, text_config__hidden_size="wide"),
            "value of the wrong kind",
        ),
        (
            lambda folder: edit_config(folder, text_config__model_type="llama"),
            "text_config.model_type 'llama'",
        ),
        (
            lambda folder: edit_config(folder, text_config__rope_parameters={"rope_type": "yarn"}),
            "'yarn'",
        ),
        (
            lambda folder: edit_config(folder, text_config__use_sliding_window=True),
            "use_sliding_window True",
        ),
        (lambda folder: edit_config(folder, vision_config__image_size=[28, 56]), "not square"),
        (lambda folder: edit_config(folder, vision_config__image_size=30), "not a whole number"),
        (
            lambda folder: edit_config(folder, vision_config__hidden_act="gelu_new"),
            "hidden_act 'gelu_new'",
        ),
        (
            lambda folder: edit_config(folder, vision_config__norm_type="batch_norm"),
            "norm_type 'batch_norm'",
        ),
        (
            lambda folder: edit_config(folder, vision_config__num_attention_heads=5),
            "not a multiple of 5",
        ),
        (lambda folder: edit_config(folder, image_token_id=50), "image token 50 lies outside"),
        (lambda folder: edit_config(folder, force_image_size=56), "force_image_size is 56"),
    ],
)
def test_bad_checkpoints_are_refused_in_one_line(edit, message, saved):
    edit(saved[1])
    with pytest.raises(UserError, match=message) as error:
        aesthetic_jax.load_pretrained(str(saved[1]))
    assert "\n" not in str(error.value)
    assert str(saved[1]) in str(error.value)


def test_every_wrong_tensor_is_named_in_one_error(saved):
    def edit(tensors):
        del tensors["vision_tower.encoder.layer.1.mlp.fc1.bias"]
        tensors["language_model.model.layers.9.mlp.up_proj.weight"] = np.zeros(3, np.float32)
        tensors["language_model.model.norm.weight"] = np.zeros(4, np.float32)
        return tensors

    edit_tensors(saved[1], edit)
    with pytest.raises(UserError) as error:
        aesthetic_jax.load_pretrained(str(saved[1]))
    assert "1 missing: vision_tower.encoder.layer.1.mlp.fc1.bias;" in str(error.value)
    assert "1 unexpected: language_model.model.layers.9.mlp.up_proj.weight;" in str(error.value)
    assert "1 of the wrong shape: language_model.model.norm.weight is [4], not [16];" in str(
        error.value
    )

    edit_config(saved[1], text_config__num_hidden_layers=40)
    with pytest.raises(UserError, match=r"and \d+ more") as error:
        aesthetic_jax.load_pretrained(str(saved[1]))
    assert len(str(error.value)) < 3000


def test_no_such_directory(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such directory"):
        aesthetic_jax.load_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such directory"):
        aesthetic_jax.save_pretrained(
            make_model(), str(tmp_path / "out"), source=str(tmp_path / "nowhere")
        )


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(hf_write, "_SHARD_BYTES", 20_000)
    calls = []

    def fail(stream, tensors):
        calls.append(stream)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return write_header(stream, tensors)

    write_header = hf_write.write_header
    monkeypatch.setattr(hf_write, "write_header", fail)
    with pytest.raises(OSError, match="no space"):
        aesthetic_jax.save_pretrained(make_model(), str(tmp_path / "out"))
    assert len(calls) == 2
    assert not list(tmp_path.iterdir())


def test_a_path_that_can_not_be_made_is_named_as_given(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory") as error:
        aesthetic_jax.save_pretrained(make_model(), str(tmp_path / "file" / "out"))
    assert error.value.filename == str(tmp_path / "file" / "out")


def test_taken_paths_are_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="exists already"):
            aesthetic_jax.save_pretrained(make_model(), str(tmp_path / name))
    assert (tmp_path / "full" / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    aesthetic_jax.save_pretrained(make_model(), str(tmp_path / "empty"))
    assert sorted(file.name for file in epath.Path(tmp_path / "empty").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no_such_name"):
        aesthetic_jax.no_such_name  # noqa: B018
