import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from aesthetic_jax.checkpoints.huggingface import save_parameters
from aesthetic_jax.checkpoints.integrity import write_checksums
from aesthetic_jax.checkpoints.runs import abstract_model, write_architecture
from aesthetic_jax.data.manifest import SPLITS, read_manifest, write_manifest
from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.prompts import completion_text, question_text
from aesthetic_jax.data.records import open_splits
from aesthetic_jax.data.tokenizer import save_tokenizer, train_tokenizer
from aesthetic_jax.models.config import PRESETS

TOKENIZER = train_tokenizer(
    [completion_text("A: fine, passes.", ("A",)), question_text("physical_shadow", 4)], 320
)


@pytest.fixture(scope="module")
def clean(command, tmp_path_factory):
    """A synthetic data set and its manifest."""
    out = tmp_path_factory.mktemp("clean") / "data"
    assert (
        command(
            "synthesize", f"--out={out}", "--num=40", "--image_size=56", "--workers=1"
        ).returncode
        == 0
    )
    return out / "manifest.jsonl"


@pytest.fixture(scope="module")
def planted(clean, tmp_path_factory):
    """The same with planted faults: the manifest and the faults."""
    folder = tmp_path_factory.mktemp("planted") / "data"
    shutil.copytree(clean.parent, folder)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    train, validation, test = ([row for row in rows if row["split"] == split] for split in SPLITS)

    with Image.open(folder / train[0]["original"]) as image:  # encoded anew, larger
        image.resize((90, 90), Image.Resampling.BICUBIC).save(
            folder / test[0]["original"], "JPEG", quality=60
        )
    shutil.copy(folder / train[1]["original"], folder / validation[0]["original"])  # the same file
    shutil.copy(
        folder / train[2]["candidates"][3], folder / train[3]["candidates"][0]
    )  # a candidate of two samples
    train[2]["answer"] = sorted({*train[2]["answer"], "D"})
    broken = folder / train[4]["candidates"][1]
    broken.write_bytes(broken.read_bytes()[:400])
    twin = train[5] | {"id": "twin", "answer": [x for x in "ABCD" if x not in train[5]["answer"]]}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, twin]))
    names = {
        "train": [row["id"] for row in train],
        "validation": validation[0]["id"],
        "test": test[0]["id"],
    }
    return folder / "manifest.jsonl", names, broken


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with architecture and tokenizer; counting tokens needs no parameters."""
    folder = tmp_path_factory.mktemp("run")
    write_architecture(str(folder), PRESETS["tiny"])
    save_tokenizer(TOKENIZER, str(folder / "tokenizer"))
    (folder / "checkpoints" / "3").mkdir(parents=True)
    write_checksums(epath.Path(folder / "checkpoints" / "3"))
    return folder


def refused(result, *said):
    """The command ended with one line of error and exit code 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("aesthetic-jax: error: ")
    for text in said:
        assert text in result.stderr


def lines_after(text, title):
    """The number after a finding's title, and the lines listed under it."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(title))
    listed = []
    for line in lines[at + 1 :]:
        if not line.startswith("  "):
            break
        listed.append(line.strip())
    return int(lines[at][len(title) + 2 :].split(" ")[0]), listed


def test_a_clean_data_set(command, clean, tmp_path):
    result = command("inspect", f"--manifest={clean}", f"--out={tmp_path / 'deep' / 'out'}")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads((tmp_path / "deep" / "out" / "inspect.json").read_text())
    assert list(report) == ["source", "overall", "splits", "rejects", "duplicates", "leakage"]
    assert {split: x["samples"] for split, x in report["splits"].items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert report["overall"]["samples"] == 40
    assert report["overall"]["sizes"] == {"56x56": 200}
    assert report["overall"]["tiles"] is report["overall"]["prompt_tokens"] is None
    # Five pictures of one product before other backdrops, and other products, are no copies.
    assert (
        report["rejects"] == report["leakage"]["ids"] == report["leakage"]["images"]["groups"] == []
    )
    assert report["duplicates"]["groups"] == report["duplicates"]["within_samples"] == []
    assert report["duplicates"]["distinct_images"] == report["duplicates"]["distinct_files"] == 200

    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == (str(clean), str(tmp_path / "deep" / "out"))
    assert lines[1].split() == ["train", "validation", "test", "overall"]
    assert lines[2].split() == ["samples", "32", "4", "4", "40"]
    answers = [x.answer for x in read_manifest(str(clean))]
    row = next(line for line in lines if line.startswith("  A,B "))
    assert row.split()[-2:] == [
        str(answers.count(("A", "B"))),
        f"{answers.count(('A', 'B')) / 40:.0%}",
    ]


def test_descriptions_are_counted(command, run, tmp_path):
    words = ("--describe", "--num=8", "--image_size=56", "--workers=1", "--splits=1,0,0")
    assert command("synthesize", f"--out={tmp_path / 'in'}", *words).returncode == 0
    config = ["--config=configs/quickstart.py:pretrain", "--config.data.max_images=1"]
    config += [f"--config.init_from={run}", "--config.data.prompt_buckets=(256,)"]
    source = f"--manifest={tmp_path / 'in' / 'manifest.jsonl'}"
    result = command("inspect", source, *config, f"--out={tmp_path / 'out'}")
    assert (result.returncode, result.stderr) == (0, "")
    overall = json.loads((tmp_path / "out" / "inspect.json").read_text())["overall"]
    assert (overall["samples"], overall["images"]) == (8, 8)
    assert overall["options"] == {"0": 8}
    assert overall["answers"] == {"None": 8}
    assert overall["passing"] == {}
    assert overall["reasoning"] == overall["questions"] == 1
    assert overall["tiles"]["max"] == 1
    assert overall["too_large"]["images"] == overall["too_large"]["prompt"] == 0
    assert "passes, of the samples" not in result.stdout
    assert (tmp_path / "out" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_planted_faults_are_found(command, planted, tmp_path):
    manifest, names, broken = planted
    result = command("inspect", f"--manifest={manifest}", f"--out={tmp_path}", "--workers=3")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads((tmp_path / "inspect.json").read_text())
    train = names["train"]
    leaks = [
        {f"train/{train[0]}/original", f"test/{names['test']}/original"},
        {f"train/{train[1]}/original", f"validation/{names['validation']}/original"},
    ]
    shared = [{f"train/{train[2]}/D", f"train/{train[3]}/A"}]
    twins = [{f"train/{train[5]}/{x}", f"train/twin/{x}"} for x in ("original", "A", "B", "C", "D")]

    (reject,) = report["rejects"]
    assert reject["name"] == f"train/{train[4]}/B"
    assert reject["error"].startswith(f"{broken}: can't be decoded")
    assert (
        report["overall"]["unreadable_images"]
        == report["splits"]["train"]["unreadable_images"]
        == 1
    )
    for role in ("originals", "images"):
        assert sorted(map(sorted, report["leakage"][role]["groups"])) == sorted(map(sorted, leaks))
        assert report["leakage"][role]["samples"] == {"train": 2, "validation": 1, "test": 1}
    assert sorted(map(sorted, report["duplicates"]["groups"])) == sorted(
        map(sorted, leaks + shared + twins)
    )
    assert sorted(map(sorted, report["duplicates"]["contradictions"])) == sorted(
        map(sorted, twins[1:])
    )
    assert report["duplicates"]["within_samples"] == report["leakage"]["ids"] == []

    assert lines_after(result.stdout, "can't be read") == (
        1,
        [f"{reject['name']}: {reject['error']}"],
    )
    number, listed = lines_after(result.stdout, "leakage: near-same originals in several splits")
    assert (number, [set(line.split(", ")) for line in listed]) == (2, leaks)
    number, listed = lines_after(result.stdout, "near-same images in several samples")
    assert (number, len(listed), listed[-1]) == (8, 6, "and 3 more")


def test_splits_are_chosen(command, planted, tmp_path):
    result = command(
        "inspect", f"--manifest={planted[0]}", f"--out={tmp_path}", "--split=test,train"
    )
    report = json.loads((tmp_path / "inspect.json").read_text())
    assert list(report["splits"]) == ["train", "test"]
    assert report["overall"]["samples"] == 37
    assert len(report["leakage"]["originals"]["groups"]) == 1
    alone = command("inspect", f"--manifest={planted[0]}", "--split=validation")
    assert result.returncode == alone.returncode == 0
    assert alone.stdout.splitlines()[1].split() == ["validation"]


def test_a_built_data_set_gives_the_same_report(command, clean, tmp_path):
    built = tmp_path / "built"
    assert command("build", f"--manifest={clean}", f"--out={built}", "--workers=1").returncode == 0
    for name, source in (("one", f"--manifest={clean}"), ("other", f"--data_dir={built}")):
        assert command("inspect", source, f"--out={tmp_path / name}").returncode == 0
    one, other = (
        json.loads((tmp_path / name / "inspect.json").read_text()) for name in ("one", "other")
    )
    assert one.pop("source") == str(clean)
    assert other.pop("source") == str(built)
    assert one == other
    sheets = [(tmp_path / name / "contact_sheet.png").read_bytes() for name in ("one", "other")]
    assert sheets[0] == sheets[1]


def test_ids_in_two_splits_are_found(command, clean, tmp_path, make_dataset):
    samples = read_manifest(str(clean))
    train, test = ([x for x in samples if x.split == split] for split in ("train", "test"))
    doubled = [*train, dataclasses.replace(test[0], id=train[7].id), *test[1:]]
    make_dataset(clean.parent, doubled, tmp_path / "built")
    result = command("inspect", f"--data_dir={tmp_path / 'built'}")
    assert result.returncode == 0
    expected = [f"train/{train[7].id}, test/{train[7].id}"]
    assert lines_after(result.stdout, "leakage: same id in several splits") == (1, expected)


def test_the_contact_sheet_follows_the_seed(command, clean, tmp_path):
    sheets = {}
    for name, flags in (
        ("a", []),
        ("b", []),
        ("c", ["--seed=1"]),
        ("d", ["--num_shown=4"]),
        ("e", ["--num_shown=99"]),
    ):
        assert (
            command("inspect", f"--manifest={clean}", f"--out={tmp_path / name}", *flags).returncode
            == 0
        )
        sheets[name] = (tmp_path / name / "contact_sheet.png").read_bytes()
    assert sheets["a"] == sheets["b"] != sheets["c"]
    heights = {name: Image.open(io.BytesIO(data)).height for name, data in sheets.items()}
    assert heights["d"] < heights["a"] == heights["c"] < heights["e"]


def test_tokens_are_those_of_the_config(command, clean, run, tmp_path):
    config = "--config=configs/quickstart.py:sft"
    flags = [
        config,
        f"--config.init_from={run}",
        f"--config.data.manifest={clean}",
        f"--out={tmp_path}",
    ]
    flags += ["--config.data.max_tiles=3", "--config.data.prompt_buckets=(32, 90)"]
    result = command("inspect", *flags)
    assert (result.returncode, result.stderr) == (0, "")
    overall = json.loads((tmp_path / "inspect.json").read_text())["overall"]
    preprocessor = Preprocessor(
        TOKENIZER, 28, PRESETS["tiny"].tokens_per_tile, 5, 3, (4096,), (512,)
    )
    records = [record for records in open_splits(str(clean)).values() for record in records]
    prompts = [len(preprocessor.prompt(record, "x")[1]) for record in records]
    taught = [
        len(TOKENIZER.encode(completion_text(record.reasoning, record.answer)))
        for record in records
    ]
    for name, values in (("prompt_tokens", prompts), ("completion_tokens", taught)):
        assert (overall[name]["min"], overall[name]["max"]) == (min(values), max(values))
        assert overall[name]["mean"] == pytest.approx(np.mean(values))
    assert overall["too_large"] == {
        "images": 0,
        "prompt": sum(tokens > 90 for tokens in prompts),
        "completion": sum(tokens > 72 for tokens in taught),
    }
    assert "  data.prompt_buckets" in result.stdout


def test_tokens_of_a_checkpoint_alone(command, clean, run, tmp_path):
    published = tmp_path / "published"
    parameters = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), abstract_model(PRESETS["tiny"])[1]
    )
    save_parameters(parameters, PRESETS["tiny"], str(published))
    save_tokenizer(TOKENIZER, str(published))
    counted = []
    for name, checkpoint in (
        ("run", run),
        ("step", run / "checkpoints" / "3"),
        ("published", published),
    ):
        flags = [f"--manifest={clean}", f"--checkpoint={checkpoint}", f"--out={tmp_path / name}"]
        result = command("inspect", *flags)
        assert (result.returncode, result.stderr) == (0, "")
        overall = json.loads((tmp_path / name / "inspect.json").read_text())["overall"]
        assert "too_large" not in overall
        counted.append([overall[x] for x in ("tiles", "prompt_tokens", "completion_tokens")])
    assert counted[0] == counted[1] == counted[2]
    assert counted[0][0]["max"] == 5


def test_a_runs_own_prompt_settings_count(command, clean, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    config = {"data": {"max_tiles": 3, "system_prompt": "You judge."}}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config}))
    flags = [f"--manifest={clean}", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path}"]
    result = command("inspect", *flags)
    assert (result.returncode, result.stderr) == (0, "")
    overall = json.loads((tmp_path / "inspect.json").read_text())["overall"]
    tokens = PRESETS["tiny"].tokens_per_tile
    preprocessor = Preprocessor(TOKENIZER, 28, tokens, 5, 3, (4096,), (512,), "You judge.")
    records = [record for records in open_splits(str(clean)).values() for record in records]
    lengths = [len(preprocessor.prompt(record, "x")[1]) for record in records]
    assert overall["prompt_tokens"]["max"] == max(lengths)


def test_bad_input_ends_in_one_line(command, clean, run, tmp_path):
    given, config = f"--manifest={clean}", "--config=configs/quickstart.py:sft"
    refused(command("inspect"), "give either --manifest=FILE or --data_dir=DIR")
    refused(
        command("inspect", given, "--data_dir=x"), "give either --manifest=FILE or --data_dir=DIR"
    )
    refused(command("inspect", config), "give either --manifest=FILE or --data_dir=DIR")
    refused(
        command("inspect", f"--manifest={tmp_path}/none"),
        f"{tmp_path}/none: there is no such manifest",
    )
    refused(
        command("inspect", f"--data_dir={tmp_path}"), f"{tmp_path}: has no data set; make one with"
    )
    refused(
        command("inspect", given, "--split=train,dev"),
        "--split: ",
        "no samples of 'dev'; choose from train, validation",
    )
    refused(command("inspect", given, "--distance=13"), "--distance=13")
    refused(command("inspect", given, "--workers=0"), "--workers=0")
    refused(command("inspect", given, "--num_shown=201"), "--num_shown=201")
    refused(command("inspect", given, f"--out={clean}"), f"--out={clean}: can't be written")
    refused(command("inspect", given, "--config=nowhere.py"), "nowhere.py")
    refused(command("inspect", given, config), "names no tokenizer", "--checkpoint=DIR")
    refused(
        command("inspect", given, f"--checkpoint={tmp_path}"),
        f"{tmp_path}/model.json: is missing; name a run directory",
    )
    flags = [given, config, f"--checkpoint={run}", "--config.data.max_tiles=0"]
    refused(command("inspect", *flags), "config.data.max_tiles: is 0; give at least 1")
    missing = tmp_path / "manifest.jsonl"
    write_manifest(read_manifest(str(clean)), str(missing))
    refused(
        command("inspect", f"--manifest={missing}"),
        f"{missing}: line 1: field 'original': there is no file",
    )
