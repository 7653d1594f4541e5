"""The recipe as a person runs it: synthesize, build, train, evaluate, screen, report; kills and restarts; bad input."""

import json
import pathlib
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SMALL = (
    "--config.batch_size=4",
    "--config.num_steps=4",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.eval_every=4",
    "--config.eval_samples=4",
    "--config.eval_batch_size=4",
    "--config.hard_cases.round_steps=3",
)
METHODS = ("sft", "grpo", "dpa_grpo", "hcm_grpo")


def config(method):
    return f"--config={CONFIGS}/quickstart.py:{method}"


def check(result):
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def data(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    check(command("synthesize", f"--out={folder}/results", "--num=40", "--image_size=56", "--workers=1"))
    check(command("build", f"--manifest={folder}/results/manifest.jsonl", f"--out={folder}/data", "--workers=1"))
    return folder


@pytest.fixture(scope="module")
def train_words(data):
    """The words that train a method at a tiny size; stage 2 starts from the finished run of SFT."""

    def words(method, workdir, *more):
        begin = () if method == "sft" else (f"--config.init_from={data}/results/runs/sft",)
        source = f"--config.data.data_dir={data}/data"
        return ("train", config(method), source, f"--workdir={workdir}", *SMALL, *begin, *more)

    return words


@pytest.fixture(scope="module")
def train(command, train_words):
    return lambda *words: command(*train_words(*words))


@pytest.fixture(scope="module")
def runs(train, data):
    """A finished run of SFT, and of the method that uses everything."""
    folder = data / "results" / "runs"
    for method in ("sft", "hcm_grpo"):
        check(train(method, folder / method))
    return folder


def log(run):
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not (k.endswith("_s") or k.startswith("time"))} for row in rows]


def parameters(run, step=4):
    return ocp.StandardCheckpointer().restore(run / "checkpoints" / str(step) / "parameters")


def test_a_run_directory_holds_what_it_should(runs):
    for method in ("sft", "hcm_grpo"):
        run = runs / method
        saved = json.loads((run / "config.json").read_text())
        assert saved["config"]["num_steps"] == 4
        assert {"jax", "flax", "python"} <= saved["versions"].keys()
        assert "git_commit" in saved
        rows = log(run)
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert all(np.isfinite(row["loss"]) and row["grad_norm"] >= 0 for row in rows)
        assert rows[-1]["eval/answered"] >= 0
        assert (run / "checkpoints" / "4").exists()
        assert list(run.glob("events.out.tfevents*"))
    wanted = (
        "reward reward/dpa reward/format exact groups/zero_spread groups/no_exact completion/length completion/cut_off"
    )
    wanted += " entropy kl clip_ratio/low clip_ratio/high hard_cases/in_batch hard_cases/pass_rate hard_cases/unseen"
    assert set(wanted.split()) <= log(runs / "hcm_grpo")[0].keys()


@pytest.mark.parametrize("method", ["sft", "hcm_grpo"])
def test_a_killed_run_goes_on_as_if_nothing_had_been(runs, start, train, train_words, tmp_path, method):
    """Killed behind step 3, so that it goes on from checkpoint 2, in the middle of a round."""
    run = tmp_path / "run"
    process = start(*train_words(method, run))
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes().splitlines()) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    check(train(method, run))
    assert log(run) == log(runs / method)
    ours, theirs = (parameters(x) for x in (run, runs / method))
    for a, b in zip(*(flatten(x) for x in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


def flatten(tree):
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in flatten(tree[name])]
    return [np.asarray(tree)]


def test_a_finished_run_is_left_alone(runs, train):
    before = (runs / "sft" / "metrics.jsonl").read_bytes()
    check(train("sft", runs / "sft"))
    assert (runs / "sft" / "metrics.jsonl").read_bytes() == before


def test_evaluate_screen_and_report(runs, command, data):
    results = data / "results"
    source = f"--config.data.data_dir={data}/data"
    for method in ("sft", "hcm_grpo"):
        words = (f"--checkpoint={runs}/{method}", "--split=test", f"--out={results}/{method}")
        check(command("evaluate", config(method), source, *words, "--config.eval_batch_size=4"))
    samples = [json.loads(line) for line in (results / "manifest.jsonl").read_text().splitlines()]
    test_samples = [x for x in samples if x["split"] == "test"]
    rows = [json.loads(line) for line in (results / "sft" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [x["id"] for x in test_samples]
    assert [row["answer"] for row in rows] == [x["answer"] for x in test_samples]
    assert rows[0].keys() == {"id", "dimension", "completion", "predicted", "answer"}
    metrics = json.loads((results / "sft" / "metrics.json").read_text())
    assert metrics["num_samples"] == len(test_samples)

    table = check(command("report", f"--results={results}", "--methods=sft,hcm_grpo"))
    assert "hcm_grpo" in table
    summary = json.loads((results / "summary.json").read_text())
    assert summary["methods"]["sft"] == metrics
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")

    paths = [results / samples[0]["original"], *(results / x for x in samples[0]["candidates"])]
    candidates = ",".join(map(str, paths[1:]))
    out = check(
        command(
            "screen", f"--checkpoint={runs}/sft/checkpoints/4", f"--original={paths[0]}", f"--candidates={candidates}"
        )
    )
    assert [json.loads(line)["dimension"] for line in out.splitlines()] == [
        "appearance_deformation",
        "physical_shadow",
        "placement_layout",
        "extension_rationality",
    ]


def test_the_2b_config_builds_abstractly(command):
    out = check(
        command("train", f"--config={CONFIGS}/sft_internvl3_2b.py", "--dry_run", "--config.data.data_dir=anywhere")
    )
    assert out.startswith("2,088,957,440 parameters: 1,784,945,152 trained, 304,012,288 frozen")


def test_synthesize_is_the_same_for_any_number_of_workers(command, tmp_path):
    for workers in (1, 2):
        check(
            command(
                "synthesize",
                f"--out={tmp_path}/{workers}",
                "--num=6",
                "--image_size=48",
                "--seed=5",
                f"--workers={workers}",
            )
        )
    files = [sorted(x.relative_to(tmp_path / str(n)) for x in (tmp_path / str(n)).rglob("*")) for n in (1, 2)]
    assert files[0] == files[1]
    assert all((tmp_path / "1" / x).read_bytes() == (tmp_path / "2" / x).read_bytes() for x in files[0] if x.suffix)


def refuses(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fly"], ["no command 'fly'", "train"]),
        (["synthesize"], ["--out"]),
        (["synthesize", "--out=x", "--num=0"], ["--num=0"]),
        (["synthesize", "--out=x", "--num=few"], ["num", "few"]),
        (["synthesize", "--out=x", "--image_size=8"], ["--image_size=8"]),
        (["synthesize", "--out=x", "--strength=0.9,0.1"], ["--strength"]),
        (["synthesize", "--out=x", "--splits=1,1,1"], ["--splits"]),
        (["synthesize", "--out=x", "--products=nowhere"], ["--products=nowhere"]),
        (["synthesize", "--out=x", "--colour=red"], ["colour"]),
        (["synthesize", "more"], ["more"]),
        (["train", "--workdir=x"], ["--config"]),
        (["train", "--config=nowhere.py", "--workdir=x"], ["nowhere.py"]),
        (["train", config("ppo"), "--workdir=x"], ["ppo", "hcm_grpo"]),
        (["train", config("sft"), "--workdir=x"], ["data.manifest"]),
        (["train", config("sft"), "--workdir=x", "--config.learning_rate=1"], ["learning_rate"]),
        (["train", config("sft"), "--workdir=x", "--config.num_steps=many"], ["num_steps", "many"]),
        (["train", config("sft"), "--workdir=x", "--config.data.data_dir=nowhere"], ["nowhere", "build"]),
        (
            ["train", config("sft"), "--workdir=x", "--config.data.data_dir=y", "--config.model.preset=3b"],
            ["3b", "internvl3_2b"],
        ),
        (["train", config("sft"), "--workdir=x", "--config.data.data_dir=y", "--config.batch_size=0"], ["batch_size"]),
        (["evaluate", config("sft"), "--out=x"], ["--checkpoint"]),
        (["screen", "--checkpoint=x", "--original=y", "--candidates=a"], ["--candidates"]),
        (
            ["screen", "--checkpoint=x", "--original=y", "--candidates=a,b", "--dimension=smell"],
            ["smell", "physical_shadow"],
        ),
        (["screen", "--checkpoint=x", "--original=y", "--candidates=a,b"], ["y", "no such image"]),
        (["report", "--results=nowhere", "--methods=sft"], ["nowhere", "evaluate"]),
    ],
)
def test_bad_flags_get_one_line(command, tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    refuses(command(*words), *expected)
    assert not list(tmp_path.iterdir())


def test_bad_surroundings_get_one_line(runs, train, command, data, tmp_path):
    refuses(train("sft", runs / "sft", "--config.seed=3"), "config.json", "seed was 0 and is 3")
    source = f"--config.data.data_dir={data}/data"
    refuses(
        command("train", config("grpo"), source, f"--workdir={tmp_path}/a", f"--config.init_from={tmp_path}"),
        "no checkpoint",
    )
    refuses(
        command("evaluate", config("sft"), source, f"--checkpoint={tmp_path}", f"--out={tmp_path}/b"), "no checkpoint"
    )
    words = (f"--checkpoint={runs}/sft", "--split=holdout", f"--out={tmp_path}/b")
    refuses(command("evaluate", config("sft"), source, *words), "holdout")
    refuses(command("synthesize", f"--out={data}/results", "--num=2"), "not empty")
    refuses(train("sft", tmp_path / "c", "--config.data.prompt_buckets=(16,)"), "data.prompt_buckets")
    broken = tmp_path / "broken"
    shutil.copytree(runs / "sft", broken)
    (broken / "model.json").write_text("{}")
    refuses(command("evaluate", config("sft"), source, f"--checkpoint={broken}", f"--out={tmp_path}/b"), "model.json")
    image = tmp_path / "text.png"
    image.write_text("no image")
    words = (f"--original={image}", f"--candidates={image},{image}")
    refuses(command("screen", f"--checkpoint={runs}/sft", *words), "text.png")
