"""The recipe as a person runs it, from synthesize to screen; kills and restarts; bad input."""

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
    check(
        command(
            "synthesize", f"--out={folder}/results", "--num=40", "--image_size=56", "--workers=1"
        )
    )
    check(
        command(
            "build",
            f"--manifest={folder}/results/manifest.jsonl",
            f"--out={folder}/data",
            "--workers=1",
        )
    )
    return folder


@pytest.fixture(scope="module")
def train_words(data):
    """Arguments that train a method at a tiny size; stage 2 starts from the finished SFT run."""

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
    """metrics.jsonl without timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not (k.endswith("_s") or k.startswith("time"))}
        for row in rows
    ]


def parameters(run, step=4):
    return ocp.StandardCheckpointer().restore(run / "checkpoints" / str(step) / "parameters")


@pytest.mark.slow
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
    wanted = "reward reward/dpa reward/format exact frac_reward_zero_std groups/no_exact entropy kl"
    wanted += " completions/mean_length completions/clipped_ratio clip_ratio/low clip_ratio/high"
    wanted += " groups/mixed hard_cases/in_batch hard_cases/pass_rate hard_cases/unseen"
    assert set(wanted.split()) <= log(runs / "hcm_grpo")[0].keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "hcm_grpo"])
def test_a_killed_run_resumes_bit_for_bit(runs, start, train, train_words, tmp_path, method):
    """Killed once checkpoint 2 is whole, it resumes from there, in the middle of a round."""
    run = tmp_path / "run"
    process = start(*train_words(method, run))
    wait_for(process, (run / "checkpoints" / "2").exists)
    kill(process)
    shutil.rmtree(run / "checkpoints" / "4", ignore_errors=True)  # where it had come so far
    assert [x.name for x in (run / "checkpoints").iterdir() if x.name.isdigit()] == ["2"]
    check(train(method, run))
    assert log(run) == log(runs / method)
    ours, theirs = (parameters(x) for x in (run, runs / method))
    for a, b in zip(*(flatten(x) for x in (ours, theirs)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "hcm_grpo"])
def test_sigterm_saves_where_the_run_is(runs, start, train, train_words, tmp_path, method):
    run = tmp_path / "run"
    words = ("--config.checkpoint_every=100",)
    process = start(*train_words(method, run, *words))
    wait_for(
        process, lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size
    )
    process.terminate()
    _, errors = process.communicate()
    steps = [row["step"] for row in log(run)]
    if len(steps) < 4:  # else it was done before
        assert process.returncode == 75, errors
        assert (
            errors.splitlines()[-1]
            == f"aesthetic-jax: stopped by SIGTERM; the same command resumes from {run}"
        )
    assert [x.name for x in (run / "checkpoints").iterdir()] == [str(steps[-1])]
    check(train(method, run, *words))
    assert log(run) == log(runs / method)
    for a, b in zip(*(flatten(parameters(x)) for x in (run, runs / method)), strict=True):
        np.testing.assert_array_equal(a, b)


def wait_for(process, happened):
    while not happened():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


def kill(process):
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_kills_in_checkpoints_in_mining_and_anywhere(runs, start, train, train_words, tmp_path):
    """two_stage mining before step 3: a run that is killed four times equals an undisturbed one."""
    words = ("hcm_grpo", "--config.hard_cases.mode=two_stage", "--config.hard_cases.mine_step=3")
    words += ("--config.hard_cases.mine_rollouts=2", "--config.checkpoint_every=1")
    quiet, run = tmp_path / "quiet", tmp_path / "run"
    result = train(words[0], quiet, *words[1:])
    check(result)
    assert sum("hard-case mining: " in line for line in result.stderr.splitlines()) == 1
    rng = np.random.default_rng()  # another instant each time

    def parts():
        return len(list((run / "mined" / "3").glob("parts/*.jsonl")))

    for happened, wait, number in (
        (lambda _: any((run / "checkpoints").glob("*tmp*/parameters")), 0.02, signal.SIGKILL),
        (lambda mined: parts() > mined, 0.0, signal.SIGTERM),
        (lambda mined: parts() > mined, 0.02, signal.SIGKILL),
        (lambda _: (run / "checkpoints").exists(), 8.0, signal.SIGKILL),
    ):
        before = parts()
        process = start(*train_words(words[0], run, *words[1:]))
        wait_for(process, lambda happened=happened, before=before: happened(before))
        time.sleep(wait * rng.random())
        if process.poll() is None:
            process.send_signal(number)
            assert process.wait() == (75 if number == signal.SIGTERM else -number)
    check(train(words[0], run, *words[1:]))
    assert log(run) == log(quiet)
    assert log(run)[-1]["hard_cases/unseen"] == 0
    for name in ("completions.jsonl", "table.npz", "mining.json"):
        assert (run / "mined" / "3" / name).read_bytes() == (
            quiet / "mined" / "3" / name
        ).read_bytes()
    for a, b in zip(*(flatten(parameters(x)) for x in (run, quiet)), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = (run / "mined" / "3" / "completions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(len(row["completions"]) == 2 and 0 <= row["exact"] <= 1 for row in rows)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(runs, train, command, tmp_path):
    """The run resumes from the one before, and writes the damaged one again."""
    run = shutil.copytree(runs / "hcm_grpo", tmp_path / "run")
    files = sorted(
        (run / "checkpoints" / "4" / "parameters").rglob("d/*"), key=lambda x: x.stat().st_size
    )
    content = bytearray(files[-1].read_bytes())
    content[len(content) // 2] ^= 4
    files[-1].write_bytes(content)
    result = train("hcm_grpo", run)
    check(result)
    assert "checkpoints/4" in result.stderr
    assert "passing over this checkpoint" in result.stderr
    assert log(run) == log(runs / "hcm_grpo")
    for a, b in zip(*(flatten(parameters(x)) for x in (run, runs / "hcm_grpo")), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_another_config_is_shown_line_by_line_and_goes_on_where_allowed(
    runs, train, tmp_path, refuses
):
    run = shutil.copytree(runs / "sft", tmp_path / "run")
    more = ("--config.num_steps=5", "--config.optimizer.learning_rate=0.001")
    result = train("sft", run, *more)
    refuses(result, "num_steps was 4 and is 5", "--allow_config_change")
    assert result.stdout.splitlines() == [
        "config.num_steps: 4 -> 5",
        "config.optimizer.learning_rate: 0.0007 -> 0.001",
    ]
    refuses(
        train("sft", run, "--config.batch_size=8", "--allow_config_change"),
        "batch_size can't change",
        "init_from",
    )
    check(train("sft", run, *more, "--allow_config_change"))
    assert [row["step"] for row in log(run)] == [1, 2, 3, 4, 5]
    saved = json.loads((run / "config.json").read_text())
    assert saved["config"]["num_steps"] == 5
    assert saved["changes"] == [
        {"step": 4, "fields": {"num_steps": [4, 5], "optimizer.learning_rate": [0.0007, 0.001]}}
    ]
    check(train("sft", run, *more))


@pytest.mark.slow
def test_mine_and_a_run_that_begins_with_its_table(runs, train, command, data, tmp_path, refuses):
    source, out = f"--config.data.data_dir={data}/data", tmp_path / "mined"
    words = (
        f"--checkpoint={runs}/sft",
        f"--out={out}",
        "--config.batch_size=4",
        "--config.hard_cases.mine_rollouts=2",
    )
    shown = check(command("mine", config("hcm_grpo"), source, *words))
    assert shown.splitlines()[-1] == str(out)
    samples = [
        json.loads(line) for line in (data / "results" / "manifest.jsonl").read_text().splitlines()
    ]
    expected = [(x["id"], x["dimension"], x["answer"]) for x in samples if x["split"] == "train"]
    rows = [json.loads(line) for line in (out / "completions.jsonl").read_text().splitlines()]
    assert [(row["id"], row["dimension"], row["answer"]) for row in rows] == expected
    assert f" {len(rows)} " in shown.splitlines()[-2]
    begin = (
        "--config.hard_cases.mode=two_stage",
        f"--config.hard_cases.table={out}",
        "--config.num_steps=1",
    )
    check(train("hcm_grpo", tmp_path / "run", *begin))
    assert log(tmp_path / "run")[0]["hard_cases/unseen"] == 0
    assert not (tmp_path / "run" / "mined").exists()
    refuses(command("mine", config("sft"), source, *words[:2]), "config.method", "grpo")
    refuses(
        command("mine", config("hcm_grpo"), source, *words, "--config.seed=5"),
        "mining.json",
        "seed",
    )
    refuses(
        train("hcm_grpo", tmp_path / "b", *begin[:1], "--config.hard_cases.table=nowhere"),
        "nowhere",
        "mine --out",
    )


def flatten(tree):
    if isinstance(tree, dict):
        return [leaf for name in sorted(tree) for leaf in flatten(tree[name])]
    return [np.asarray(tree)]


@pytest.mark.slow
def test_a_finished_run_is_left_alone(runs, train):
    before = (runs / "sft" / "metrics.jsonl").read_bytes()
    check(train("sft", runs / "sft"))
    assert (runs / "sft" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_evaluate_screen_and_report(runs, command, data):
    results = data / "results"
    source = f"--config.data.data_dir={data}/data"
    for method in ("sft", "hcm_grpo"):
        words = (f"--checkpoint={runs}/{method}", "--split=test", f"--out={results}/{method}")
        check(command("evaluate", config(method), source, *words, "--config.eval_batch_size=4"))
    samples = [json.loads(line) for line in (results / "manifest.jsonl").read_text().splitlines()]
    test_samples = [x for x in samples if x["split"] == "test"]
    rows = [
        json.loads(line)
        for line in (results / "sft" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["id"] for row in rows] == [x["id"] for x in test_samples]
    assert [row["answer"] for row in rows] == [x["answer"] for x in test_samples]
    assert rows[0].keys() == {"id", "dimension", "completion", "predicted", "answer"}
    metrics = json.loads((results / "sft" / "metrics.json").read_text())
    words = (f"--checkpoint={runs}/sft", "--split=test", f"--out={results}/sft")
    other = ("--config.eval_batch_size=4", "--config.data.system_prompt=Be kind.")
    again = command("evaluate", config("sft"), source, *words, *other)
    check(again)  # answered already: prompts are the run's, not this config's
    assert "prompts are those of" in again.stderr
    assert "config.data.system_prompt '' instead of 'Be kind.'" in again.stderr
    assert metrics["num_samples"] == len(test_samples)
    facts = metrics["facts"]
    assert {"kind", "body", "label", "cap", "light"} < facts.keys()
    assert facts["kind"]["num"] == facts["light"]["num"] == 5 * len(test_samples)
    assert facts["light"].keys() == {"hit_rate", "false_alarm_rate", "num"}

    table = check(command("report", f"--results={results}", "--methods=sft,hcm_grpo"))
    assert "hcm_grpo" in table
    summary = json.loads((results / "summary.json").read_text())
    assert summary["methods"]["sft"] == metrics
    assert summary["differences"].keys() == {"hcm_grpo"}
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")

    paths = [results / samples[0]["original"], *(results / x for x in samples[0]["candidates"])]
    candidates = ",".join(map(str, paths[1:]))
    out = check(
        command(
            "screen",
            f"--checkpoint={runs}/sft/checkpoints/4",
            f"--original={paths[0]}",
            f"--candidates={candidates}",
        )
    )
    assert [json.loads(line)["dimension"] for line in out.splitlines()] == [
        "appearance_deformation",
        "physical_shadow",
        "placement_layout",
        "extension_rationality",
    ]


@pytest.mark.slow
def test_the_2b_config_builds_abstractly(command):
    out = check(
        command(
            "train",
            f"--config={CONFIGS}/sft_internvl3_2b.py",
            "--dry_run",
            "--config.data.data_dir=anywhere",
        )
    )
    assert out.startswith("2,088,957,440 parameters: 1,784,945,152 trained, 304,012,288 frozen")


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
        (
            ["train", config("sft"), "--workdir=x", "--config.data.data_dir=nowhere"],
            ["nowhere", "build"],
        ),
        (
            [
                "train",
                config("sft"),
                "--workdir=x",
                "--config.data.data_dir=y",
                "--config.model.preset=3b",
            ],
            ["3b", "internvl3_2b"],
        ),
        (
            [
                "train",
                config("sft"),
                "--workdir=x",
                "--config.data.data_dir=y",
                "--config.batch_size=0",
            ],
            ["batch_size"],
        ),
        (
            [
                "train",
                config("sft"),
                "--workdir=x",
                "--config.data.data_dir=y",
                "--config.data.completion_buckets=(1,8)",
            ],
            ["data.completion_buckets", "at least 2"],
        ),
        (
            [
                "train",
                config("grpo"),
                "--workdir=x",
                "--config.data.data_dir=y",
                "--config.max_completion_length=1",
            ],
            ["max_completion_length", "at least 2"],
        ),
        (["evaluate", config("sft"), "--out=x"], ["--checkpoint"]),
        (["mine", config("grpo"), "--out=x"], ["--checkpoint"]),
        (["screen", "--checkpoint=x", "--original=y", "--candidates=a"], ["--candidates"]),
        (
            ["screen", "--checkpoint=x", "--original=y", "--candidates=a,b", "--dimension=smell"],
            ["smell", "physical_shadow"],
        ),
        (["screen", "--checkpoint=x", "--original=y", "--candidates=a,b"], ["y", "no such image"]),
        (["report", "--results=nowhere", "--methods=sft"], ["nowhere", "evaluate"]),
    ],
)
def test_bad_flags_get_one_line(command, tmp_path, monkeypatch, words, expected, refuses):
    monkeypatch.chdir(tmp_path)
    refuses(command(*words), *expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bad_surroundings_get_one_line(runs, train, command, data, tmp_path, refuses):
    refuses(train("sft", runs / "sft", "--config.seed=3"), "config.json", "seed was 0 and is 3")
    source = f"--config.data.data_dir={data}/data"
    refuses(
        command(
            "train",
            config("grpo"),
            source,
            f"--workdir={tmp_path}/a",
            f"--config.init_from={tmp_path}",
        ),
        "no checkpoint",
    )
    refuses(
        command(
            "evaluate", config("sft"), source, f"--checkpoint={tmp_path}", f"--out={tmp_path}/b"
        ),
        "no checkpoint",
    )
    words = (f"--checkpoint={runs}/sft", "--split=holdout", f"--out={tmp_path}/b")
    refuses(command("evaluate", config("sft"), source, *words), "holdout")
    refuses(command("synthesize", f"--out={data}/results", "--num=2"), "not empty")
    refuses(
        train("sft", tmp_path / "c", "--config.data.prompt_buckets=(16,)"), "data.prompt_buckets"
    )
    broken = tmp_path / "broken"
    shutil.copytree(runs / "sft", broken)
    (broken / "model.json").write_text("{}")
    refuses(
        command("evaluate", config("sft"), source, f"--checkpoint={broken}", f"--out={tmp_path}/b"),
        "model.json",
    )
    image = tmp_path / "text.png"
    image.write_text("no image")
    words = (f"--original={image}", f"--candidates={image},{image}")
    refuses(command("screen", f"--checkpoint={runs}/sft", *words), "text.png")
