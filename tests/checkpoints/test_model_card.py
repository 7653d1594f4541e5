"""Model cards: front matter, table, usage, and the facts read from a run."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from aesthetic_jax.checkpoints import lineage
from aesthetic_jax.checkpoints.lineage import (
    BaseModel,
    License,
    Lineage,
    Stage,
    read_license,
    trace,
)
from aesthetic_jax.checkpoints.model_card import CardFacts, method_name, render_card


def config(method="sft", variant="exact", mode="off", **more):
    """A resolved config with paths of the machine that trained."""
    fields = {
        "method": method,
        "init_from": "OpenGVLab/InternVL3-2B",
        "num_steps": 1000,
        "batch_size": 64,
        "optimizer": {"learning_rate": 1e-6},
        "model": {"lora_rank": 0, "freeze": ["vision"]},
        "data": {"manifest": "/home/someone/photos/manifest.jsonl", "system_prompt": "Judge.\nA/B"},
        "hard_cases": {"mode": mode, "table": "gs://bucket/secret/table"},
    }
    if method == "grpo":
        fields |= {
            "grpo": {"num_generations": 8, "loss_type": "dapo"},
            "reward": {"variant": variant},
        }
    return fields | more


def interval(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def row(value):
    names = ("exact", "dpa", "jaccard", "per_option", "answered")
    return {name: interval(value) for name in names}


METRICS = {
    "num_samples": 1218,
    "overall": row(0.492),
    "dimensions": {"appearance_deformation": row(0.156), "physical_shadow": row(0.8)},
    "chance": {"uniform": row(0.0625), "best_constant": row(0.076) | {"answer": []}},
}
SFT = Stage("sft", config(), 1000, {"jax": "0.10.2"}, "abc")
HCM = Stage("hcm", config("grpo", "subset", "online", init_from="sft"), None, {}, None)
BASE = BaseModel("OpenGVLab/InternVL3-2B", License("apache-2.0"))


def facts(**changes):
    fields = {
        "name": "screener",
        "num_parameters": 2_088_957_440,
        "dtype": "bfloat16",
        "tile_size": 448,
        "tokens_per_tile": 256,
        "has_processor": True,
        "lineage": Lineage((SFT, HCM), BASE),
        "license": BASE.license,
        "metrics": METRICS,
    }
    return CardFacts(**fields | changes)


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter():
    card = render_card(facts())
    assert front_matter(card) == {
        "license": "apache-2.0",
        "base_model": "OpenGVLab/InternVL3-2B",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["internvl", "image-screening", "aesthetic_jax", "sft", "hcm-grpo"],
    }
    assert ModelCard(card).data.base_model == "OpenGVLab/InternVL3-2B"


def test_front_matter_is_quoted_where_yaml_needs_it():
    odd = License("other", 'no: "yes" #1', "https://a.b/c?d=e: f")
    fields = front_matter(render_card(facts(license=odd)))
    assert fields["license"] == "other"
    assert (fields["license_name"], fields["license_link"]) == odd[1:]


def test_results_have_every_row_with_intervals():
    card = render_card(facts())
    assert "Percent of 1,218 questions" in card
    cells = " | ".join(["15.6 [13.6, 17.6]"] * 5)
    assert f"| appearance deformation | {cells} |" in card
    assert "| **overall** | 49.2 [47.2, 51.2] |" in card
    assert "| chance: best constant | 7.6 [5.6, 9.6] |" in card
    assert "Not evaluated" in render_card(facts(metrics=None))


def test_stages_and_settings():
    card = render_card(facts())
    assert "| 1 | SFT | manifest.jsonl, 1,000 training samples | 1000 steps, 64 prompts per" in card
    assert "| 2 | HCM-GRPO | manifest.jsonl | " in card
    assert "8 completions per prompt, dapo loss, subset reward" in card
    assert '"git_commit": "abc"' in card


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (config(), "SFT"),
        (config("grpo"), "GRPO"),
        (config("grpo", "subset"), "DPA-GRPO"),
        (config("grpo", "subset", "two_stage"), "HCM-GRPO"),
        ({}, "SFT"),
    ],
)
def test_methods(fields, name):
    assert method_name(fields) == name


def test_no_paths_of_the_machine():
    card = render_card(facts())
    for word in ("/home", "someone", "bucket", "photos/"):
        assert word not in card
    assert '"table": "table"' in card
    assert "Judge.\\nA/B" in card


def test_usage():
    card = render_card(facts())
    assert 'AutoProcessor.from_pretrained("OWNER/screener")' in card
    assert 'aesthetic_jax.load_pretrained("OWNER/screener")' in card
    card = render_card(facts(has_processor=False))
    assert "AutoProcessor" not in card
    assert 'tokenizer = AutoTokenizer.from_pretrained("OWNER/screener")' in card


def test_a_base_that_is_not_on_the_hub_is_named_in_the_text_alone():
    card = render_card(facts(lineage=Lineage((), BaseModel("my-base")), license=None))
    assert "base_model" not in front_matter(card)
    assert "license" not in front_matter(card)
    assert "my-base. 2,089.0 million parameters" in card
    assert "That of the base model, my-base." in card


def test_no_base():
    card = render_card(facts(lineage=Lineage((), None, from_scratch=True), license=None))
    assert "trained from random parameters" in card
    assert "Not recorded" in render_card(facts(lineage=Lineage((), None)))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("README.md", "---\nlicense: mit\ntags: [a]\n---\n# x", License("mit")),
        (
            "README.md",
            "---\nlicense: other\nlicense_name: 'qwen'\nlicense_link: https://a.b/c\n---\n",
            License("other", "qwen", "https://a.b/c"),
        ),
        ("README.md", "# license: mit", None),
        ("LICENSE", "   Apache License\n  Version 2.0, January 2004", License("apache-2.0")),
        ("LICENSE.md", "MIT License\n\nPermission is", License("mit")),
        ("LICENSE", "You may not.", License("other")),
        ("notes", "MIT License", None),
    ],
)
def test_licences(name, text, expected, tmp_path):
    (tmp_path / name).write_text(text)
    assert read_license(str(tmp_path)) == expected


def make_run(folder, fields):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text("{}")
    record = {"config": fields, "versions": {"jax": "0.10.2"}, "git_commit": "abc"}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_lineage_goes_back_to_the_base_model(elsewhere, tmp_path, monkeypatch):
    """Also from a working directory other than the training's."""
    if not elsewhere:
        monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"split": "train"}\n{"split": "test"}\n{"split": "train"}\n')
    make_run(tmp_path / "runs" / "sft", config(data={"manifest": str(manifest)}))
    second = make_run(
        tmp_path / "runs" / "grpo", config("grpo", init_from="runs/sft/checkpoints/7")
    )
    found = trace(f"{second}/checkpoints/100")
    assert [stage.name for stage in found.stages] == ["sft", "grpo"]
    assert [stage.num_samples for stage in found.stages] == [2, None]
    assert found.stages[1].config["init_from"] == "sft"
    assert found.base == BaseModel("OpenGVLab/InternVL3-2B", None)


@pytest.mark.parametrize("start", ["hf://OpenGVLab/InternVL3-2B@v1", "OpenGVLab/InternVL3-2B"])
def test_a_base_on_the_hub(start, tmp_path):
    run = make_run(tmp_path / "run", config(init_from=start))
    assert trace(str(run)).base == BaseModel("OpenGVLab/InternVL3-2B")


def test_a_base_in_a_directory(tmp_path):
    (tmp_path / "InternVL3-2B").mkdir()
    (tmp_path / "InternVL3-2B" / "config.json").write_text('{"model_type": "internvl"}')
    (tmp_path / "InternVL3-2B" / "README.md").write_text("---\nlicense: mit\n---\n")
    run = make_run(tmp_path / "run", config(init_from=str(tmp_path / "InternVL3-2B")))
    assert trace(str(run)).base == BaseModel("InternVL3-2B", License("mit"))
    assert trace(str(run)).stages[0].config["init_from"] == "InternVL3-2B"


def test_a_converted_base(tmp_path):
    base = BaseModel("OpenGVLab/InternVL3-2B", License("other", "qwen", None))
    (tmp_path / "base").mkdir()
    lineage.write_base(str(tmp_path / "base"), base)
    run = make_run(tmp_path / "run", config(init_from=str(tmp_path / "base")))
    assert trace(str(run)).base == base
    assert trace(str(tmp_path / "base")) == Lineage((), base)


def test_lineages_that_end_early(tmp_path):
    run = make_run(tmp_path / "run", config(init_from=""))
    assert trace(str(run)).from_scratch
    run = make_run(tmp_path / "lost", config(init_from=str(tmp_path / "nowhere")))
    assert trace(str(run)).base == BaseModel("nowhere")
    run = make_run(tmp_path / "circle", config(init_from=str(tmp_path / "circle")))
    assert len(trace(str(run)).stages) <= 20
    assert trace(str(tmp_path / "nowhere")) == Lineage((), None)


def test_samples_of_a_built_data_set_are_counted(tmp_path):
    folder = tmp_path / "data" / "screening" / "1.0.0"
    folder.mkdir(parents=True)
    splits = [{"name": "train", "shardLengths": ["64", "3"]}, {"name": "test", "shardLengths": []}]
    (folder / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    run = make_run(
        tmp_path / "run", config(data={"manifest": "", "data_dir": str(tmp_path / "data")})
    )
    assert trace(str(run)).stages[0].num_samples == 67
