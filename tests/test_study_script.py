"""scripts/study.sh without training: questions, arms, budget, endpoints on planted results."""

import collections
import importlib.util
import json
import math
import pathlib
import re
import subprocess

import numpy as np
import pytest

from aesthetic_jax.checkpoints import runs
from aesthetic_jax.data.hard_cases import init_table
from aesthetic_jax.data.manifest import DIMENSIONS, read_manifest
from aesthetic_jax.data.records import open_records
from aesthetic_jax.rl.paired import Difference
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.mining import mining_steps

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study(load_script):
    """The script; it makes studylib importable."""
    return load_script("study")


@pytest.fixture(scope="module")
def pool(study):
    from studylib import pool

    return pool


@pytest.fixture(scope="module")
def endpoints(study):
    from studylib import endpoints

    return endpoints


@pytest.fixture(scope="module")
def measures(study):
    from studylib import measures

    return measures


def load_config(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SWEEP = load_config(ROOT / "configs" / "sweeps" / "study.py")


# --- Questions ---


def test_the_pool_and_the_test_are_composed_as_planned(pool):
    questions = pool.plan_questions(*pool.SETS["pool"])
    counts = collections.Counter((x.part.split, x.part.type) for x in questions)
    assert counts == {
        ("train", "easy"): 800,
        ("train", "hard"): 152,
        ("train", "flipped"): 48,
        ("test", "easy"): 1200,
        ("test", "hard"): 1200,
    }
    assert sum(x.num for x in pool.POOL if x.split == "train") == SWEEP.POOL
    dimensions = collections.Counter((x.part.split, x.part.type, x.number % 4) for x in questions)
    assert all(dimensions[(*part, i)] == counts[part] // 4 for part in counts for i in range(4))
    assert len({(x.seed, x.number) for x in questions}) == len(questions)
    assert pool.plan_questions(*pool.SETS["pool"]) == questions


def test_order_and_ids_tell_no_type(pool):
    questions = pool.plan_questions(*pool.SETS["pool"])
    assert [x.id for x in questions] == [f"{i + 1:06d}" for i in range(len(questions))]
    train = [x.part.type for x in questions if x.part.split == "train"]
    for quarter in np.array_split(np.array(train), 4):
        assert 20 <= (quarter == "hard").sum() <= 56
        assert 3 <= (quarter == "flipped").sum() <= 22


def test_hard_flaws_break_their_dimension(pool):
    assert pool.HARD.keys() == pool.EASY.keys() == set(DIMENSIONS)
    for dimension, look in pool.HARD.items():
        assert look.breaking
        assert all(dimension in pool.BREAKS[flaw] for flaw in look.breaking)
        assert look.strength[1] < pool.EASY[dimension].strength[0]


def test_easy_questions_look_like_the_recipe_s(pool):
    recipe = (ROOT / "scripts" / "recipe.sh").read_text()
    assert f"--image_size={pool.SIZE} " in recipe
    low, high = pool.EASY["physical_shadow"].strength
    assert f"--strength={low:g},{high:g} " in recipe


def test_flipping_inverts_one_or_two_letters(pool):
    rng = np.random.default_rng(0)
    for answer in ((), ("A",), ("B", "D"), ("A", "B", "C", "D")):
        sizes = {len(set(answer) ^ set(pool.flip(rng, answer, 4))) for _ in range(50)}
        assert sizes == {1, 2}


@pytest.fixture(scope="module")
def written(pool, tmp_path_factory):
    """A small set of questions, and its folder."""
    folder = tmp_path_factory.mktemp("study") / "pool"
    parts = (
        pool.Part("easy", "train", 8, pool.EASY),
        pool.Part("hard", "train", 32, pool.HARD),
        pool.Part("flipped", "train", 8, pool.EASY),
        pool.Part("easy", "test", 4, pool.EASY),
    )
    questions = pool.plan_questions(parts, 7)
    pool.write_questions(folder, questions, workers=1)
    return folder, questions


def true_answers(folder):
    """What follows from scenes.jsonl: a candidate passes unless a flaw breaks the dimension."""
    dimensions = {x.id: x.dimension for x in read_manifest(str(folder / "manifest.jsonl"))}
    lines = map(json.loads, (folder / "scenes.jsonl").read_text().splitlines())
    return {
        line["id"]: tuple(
            letter
            for letter in "ABCD"
            if not any(
                dimensions[line["id"]] in flaw["breaks"] for flaw in line["images"][letter]["flaws"]
            )
        )
        for line in lines
    }


def test_flipped_answers_are_wrong_and_the_others_right(written):
    folder, _ = written
    types, truth = json.loads((folder / "types.json").read_text()), true_answers(folder)
    for sample in read_manifest(str(folder / "manifest.jsonl")):
        assert (sample.answer != truth[sample.id]) == (types[sample.id] == "flipped")


def test_hard_questions_have_weak_flaws_from_their_list(pool, written):
    folder, questions = written
    lines = map(json.loads, (folder / "scenes.jsonl").read_text().splitlines())
    scenes, breaking = {line["id"]: line["images"] for line in lines}, 0
    for question in questions:
        dimension = DIMENSIONS[question.number % 4]
        look = question.part.looks[dimension]
        for image in scenes[question.id].values():
            for flaw in image["flaws"]:
                assert look.strength[0] - 1e-3 <= flaw["strength"] <= look.strength[1] + 1e-3
                if question.part.type == "hard" and dimension in flaw["breaks"]:
                    assert flaw["name"] in look.breaking
                    breaking += 1
    assert breaking > 32  # about half of 128 candidates fail


def test_records_tell_no_type(written, make_dataset, measures, tmp_path):
    folder, questions = written
    assert {x.name for x in folder.iterdir()} == {
        "images",
        "manifest.jsonl",
        "scenes.jsonl",
        "types.json",
    }
    fields = {name for line in (folder / "manifest.jsonl").read_text().splitlines()
              for name in json.loads(line)}  # fmt: skip
    assert fields == {"id", "split", "dimension", "original", "candidates", "answer"}
    make_dataset(folder, read_manifest(str(folder / "manifest.jsonl")), tmp_path / "data")
    built = [x for x in (tmp_path / "data").rglob("*") if x.is_file()]
    assert not any(b"flipped" in x.read_bytes() for x in built)
    expected = [x for x in questions if x.part.split == "train"]
    assert open_records(data_dir=str(tmp_path / "data")).ids() == [x.id for x in expected]
    assert measures.train_types(folder) == [x.part.type for x in expected]


# --- Arms and their budget ---


def config_of(arm):
    """The arm's whole config."""
    config = load_config(ROOT / "configs" / "quickstart.py").get_config("grpo")
    fields = dict(field.split("=") for field in dict(SWEEP.get_config().experiments)[arm])
    for name, value in fields.items():
        *sections, last = name.split(".")
        part = config
        for section in sections:
            part = part[section]
        part[last] = type(part[last])(value == "True" if value in ("True", "False") else value)
    config.data.data_dir = "unread"
    check_config(config)
    return config


def test_all_arms_use_equal_completions(endpoints):
    experiments = SWEEP.get_config().experiments
    assert sorted(name for name, _ in experiments) == sorted(endpoints.ARMS)
    for name, fields in experiments:
        assert len({field.split("=")[0] for field in fields}) == len(fields)
        config = config_of(name)
        group = config.grpo.num_generations
        assert config.batch_size * group == endpoints.STEP
        minings = len(mining_steps(config.hard_cases, config.num_steps))
        mined = minings * SWEEP.POOL * config.hard_cases.mine_rollouts
        used = config.num_steps * endpoints.STEP + mined
        assert 0 <= endpoints.COMPLETIONS - used <= endpoints.STEP
        assert config.num_steps == (128 if minings else 160)
        assert config.num_steps % config.hard_cases.round_steps == 0
        assert config.log_every == 1


def test_arms_differ_from_uniform_in_what_their_name_says():
    uniform = config_of("uniform")
    assert (uniform.reward.variant, uniform.hard_cases.mode) == ("exact", "off")
    changes = {
        "failure": {"mode": "online", "weighting": "failure"},
        "variance": {"mode": "online", "weighting": "variance"},
        "two_stage": {"mode": "two_stage"},
        "paper_hcm": {"mode": "two_stage", "variant": "subset"},
        "subset": {"variant": "subset"},
        "subset_gated": {"variant": "subset", "gate": "exact"},
        "per_option": {"variant": "per_option"},
        "dpa_anneal": {"variant": "subset", "dpa_anneal": True},
    }
    for name, expected in changes.items():
        config = config_of(name)
        for field, value in expected.items():
            assert (config.reward.to_dict() | config.hard_cases.to_dict())[field] == value
        for section in ("optimizer", "grpo", "model", "data"):
            assert config[section].to_dict() == uniform[section].to_dict()


# --- Endpoints ---


QUESTIONS = [f"{i:04d}" for i in range(2400)]
KINDS = {x: "hard" if i % 2 else "easy" for i, x in enumerate(QUESTIONS)}
TEN = [(checkpoint, seed) for checkpoint in (0, 1) for seed in range(5)]


def plant(measures, arms, keys=TEN, completions=20_480):
    """Runs of arms whose share of exact answers is 40 % and a planted gain on hard questions.

    Args:
        arms: {name: gain}.
    """
    difficulty = np.random.default_rng(0).random(len(QUESTIONS))
    hard = np.array([KINDS[x] == "hard" for x in QUESTIONS])
    planted = {}
    for number, (name, gain) in enumerate(arms.items()):
        planted[name] = {}
        for checkpoint, seed in keys:
            rng = np.random.default_rng((1, number, checkpoint, seed))
            luck = 0.1 * rng.normal(size=len(QUESTIONS))
            exact = difficulty + luck < 0.4 + gain * hard
            rows = [
                {"id": x, "dimension": DIMENSIONS[i // 2 % 4], "answer": ["A"],
                 "predicted": ["A"] if exact[i] else None}
                for i, x in enumerate(QUESTIONS)
            ]  # fmt: skip
            values = dict.fromkeys(measures.MEASURES, 0.5) | {"hit_rate": 0.8 + 0.001 * seed}
            visits = {"easy": 0.8, "hard": 0.15, "flipped": 0.05}
            log = [{"step": x, "exact": 0.4, "reward": 0.5, "entropy": 1.0} for x in (1, 2)]
            planted[name][checkpoint, seed] = measures.Run(rows, values, visits, completions, log)
    return planted


def test_planted_gains_and_nulls_are_named(endpoints, measures):
    arms = plant(measures, {"uniform": 0.0, "failure": 0.05, "variance": 0.0, "subset": -0.05})
    result = endpoints.compare_arms(arms, KINDS)
    assert result.keys() == {"failure", "variance", "subset"}
    assert result["failure"]["verdicts"]["hard"] == "gain"
    assert result["failure"]["endpoints"]["hard"]["value"] == pytest.approx(0.05, abs=0.015)
    assert result["failure"]["pairs"] == result["failure"]["planned_pairs"] == 10
    assert result["variance"]["verdicts"] == {
        "hard": "no gain",
        "overall": "no gain",
        "easy": "non-inferior",
    }
    assert result["subset"]["verdicts"]["hard"] == "unresolved"
    assert result["subset"]["endpoints"]["hard"]["high"] < 0
    assert "p_adjusted" not in result["subset"]
    overall, hard, easy = (
        result["failure"]["endpoints"][x]["value"] for x in ("overall", "hard", "easy")
    )
    assert overall == pytest.approx((hard + easy) / 2)


def test_one_pair_settles_nothing(endpoints, measures):
    arms = plant(measures, {"uniform": 0.0, "failure": 0.2}, keys=[(0, 0)])
    (result,) = endpoints.compare_arms(arms, KINDS).values()
    assert result["pairs"] == 1
    assert result["endpoints"]["hard"]["low"] > 0
    assert set(result["verdicts"].values()) == {"unresolved", "not shown"}
    assert result["endpoints"]["hit_rate"] == {
        "value": 0.0,
        "low": None,
        "high": None,
        "low_90": None,
        "high_90": None,
        "p_value": 1.0,
    }


def test_holm_covers_both_primary_arms_whatever_is_finished(endpoints, measures):
    arms = plant(measures, {"uniform": 0.0, "failure": 0.02, "variance": 0.02})
    both = endpoints.compare_arms(arms, KINDS)
    first, second = sorted(both.values(), key=lambda x: x["endpoints"]["hard"]["p_value"])
    p_values = [x["endpoints"]["hard"]["p_value"] for x in (first, second)]
    assert first["p_adjusted"] == pytest.approx(min(1, 2 * p_values[0]))
    assert second["p_adjusted"] == pytest.approx(min(1, max(2 * p_values[0], p_values[1])))
    del arms["variance"]
    alone = endpoints.compare_arms(arms, KINDS)["failure"]
    expected = min(1, 2 * both["failure"]["endpoints"]["hard"]["p_value"])
    assert alone["p_adjusted"] == pytest.approx(expected)


def test_only_complete_pairs_count(endpoints, measures):
    arms = plant(measures, {"uniform": 0.0, "failure": 0.05, "variance": 0.0})
    del arms["uniform"][0, 0], arms["failure"][1, 4]
    arms["variance"] = {}
    result = endpoints.compare_arms(arms, KINDS)
    assert {name: x["pairs"] for name, x in result.items()} == {"failure": 8}
    assert endpoints.compare_arms({"failure": arms["failure"]}, KINDS) == {}


@pytest.mark.parametrize(
    ("numbers", "p_adjusted", "expected"),
    [
        ((0.03, 0.01, 0.05, 0.013, 0.047), 0.02, "gain"),
        ((0.03, 0.01, 0.05, 0.013, 0.047), 0.06, "unresolved"),
        ((0.015, 0.005, 0.025, 0.007, 0.023), 0.01, "unresolved"),  # above 0, but below 2 points
        ((0.01, 0.001, 0.019, 0.003, 0.017), 0.01, "no gain"),
        ((0.0, -0.022, 0.022, -0.018, 0.018), 1.0, "no gain"),
        ((0.0, -0.03, 0.03, -0.025, 0.025), 1.0, "unresolved"),
        ((0.03, -0.01, 0.07, 0.0, 0.06), 0.2, "unresolved"),
    ],
)
def test_verdicts(endpoints, numbers, p_adjusted, expected):
    assert endpoints.verdict(Difference(*numbers, p_value=0.5), p_adjusted) == expected


def test_unequal_budgets_are_refused(endpoints, measures):
    endpoints.check_budget(plant(measures, {"uniform": 0.0}, completions=20_384))
    with pytest.raises(endpoints.UserError, match="20,224"):
        endpoints.check_budget(plant(measures, {"uniform": 0.0}, completions=20_224))


# --- Files of a study ---


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(seed, name, table, steps, mode):
    """Files of a run on the test questions 0001 (easy) and 0002 (hard), as a sweep leaves them."""
    run = seed / "runs" / name
    none = {"none": np.zeros(())}
    with runs.open_manager(str(run)) as manager:
        runs.save(manager, steps, none, none, (table, np.zeros(4, np.int32)))
    settings = {"mode": mode, "mine_rollouts": 4}
    config = {"hard_cases": settings, "grpo": {"num_generations": 8}}
    (run / "config.json").write_text(json.dumps({"config": config}))
    row = {"exact": 0.5, "reward": 0.6, "entropy": 1.0}
    log = [{"step": i, "groups/mixed": i / steps} | row for i in range(1, steps + 1)]
    write_lines(run / "metrics.jsonl", log)
    rows = [
        {"id": f"000{i}", "dimension": DIMENSIONS[0], "answer": ["A"], "predicted": ["A"] * i}
        for i in (1, 2)
    ]
    write_lines(seed / name / "predictions.jsonl", rows)
    facts = {"kind": {"hit_rate": 0.9, "false_alarm_rate": 0.1, "num": 3},
             "bent": {"hit_rate": 0.5, "false_alarm_rate": None, "num": 1}}  # fmt: skip
    letters = {"letters_named_less_right": {"value": -0.25}}
    write_lines(seed / name / "metrics.json", [{"facts": facts, "overall": letters}])


@pytest.fixture
def results(tmp_path):
    """A study with one seed: uniform and two_stage are finished, failure isn't."""
    samples = [("train", "easy"), ("train", "hard"), ("train", "flipped"), ("train", "easy")]
    samples += [("test", "easy"), ("test", "hard")]
    names = ["0011", "0012", "0013", "0014", "0001", "0002"]
    manifest = [
        {"id": name, "split": split, "dimension": DIMENSIONS[0], "original": "a.jpg",
         "candidates": ["b.jpg", "c.jpg"], "answer": ["A"]}
        for name, (split, _) in zip(names, samples, strict=True)
    ]  # fmt: skip
    write_lines(tmp_path / "pool" / "manifest.jsonl", manifest)
    kinds = {name: kind for name, (_, kind) in zip(names, samples, strict=True)}
    write_lines(tmp_path / "pool" / "types.json", [kinds])
    seed = tmp_path / "sweep0" / "seed0"
    visits = np.array([1000, 800, 360, 400])  # 2,560
    count = (8 * visits).astype(np.int32)
    table = init_table(4)._replace(count=count, num_exact=count // 4)
    write_run(seed, "uniform", table, 160, "off")
    mined = count // 2 + np.int32(4)
    mined[0] += 20_384 - mined.sum()
    write_run(
        seed, "two_stage", table._replace(count=mined, num_exact=mined // 2), 128, "two_stage"
    )
    (seed / "runs" / "failure").mkdir()
    mined_rows = [
        {"id": name, "dimension": DIMENSIONS[0], "exact": share}
        for name, share in zip(names[:4], (1.0, 0.75, 0.0, 0.5), strict=True)
    ]
    write_lines(tmp_path / "checkpoint0" / "pool" / "completions.jsonl", mined_rows)
    (tmp_path / "checkpoint0" / "pool" / "table.npz").write_bytes(b"")
    return tmp_path


def test_the_report_of_an_interrupted_study(study, results, capsys):
    study.main(["study.py", "--step=report", f"--results={results}"])
    printed = capsys.readouterr().out
    assert printed == (results / "study.txt").read_text()
    assert "1 of 4" in printed
    report = json.loads((results / "study.json").read_text())
    assert report["arms"].keys() == {"uniform", "two_stage"}
    uniform = report["arms"]["uniform"]
    assert uniform["completions"] == [20_480]
    assert uniform["visits"] == pytest.approx(
        {"easy": 1400 / 2560, "hard": 800 / 2560, "flipped": 360 / 2560}
    )
    assert uniform["exact"] == {"hard": 0.0, "easy": 1.0, "overall": 0.5}
    assert uniform["measures"] == pytest.approx(
        {
            "training_exact": 0.25,
            "hit_rate": 0.7,
            "false_alarm_rate": 0.1,
            "letters_named_less_right": -0.25,
            "mixed_groups": np.mean(np.arange(1, 161)) / 160,
        }
    )
    two_stage = report["arms"]["two_stage"]
    assert two_stage["completions"] == [20_384]
    assert two_stage["visits"]["hard"] == pytest.approx(400 / (20_368 / 8), abs=1e-3)
    difference = report["comparisons"]["two_stage"]["endpoints"]["training_exact"]["value"]
    assert difference == pytest.approx(0.25, abs=1e-3)
    sampled = report["calibration"]["checkpoint0"]["sampled"]
    assert sampled["easy"]["overall"] == {"exact": 0.75, "num": 2}
    assert (results / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_calibration_says_where_hard_questions_are_off(study, results, capsys):
    study.main(["study.py", "--step=calibration", f"--results={results}"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "hard questions solved outside 25% to 55%: checkpoint0, appearance_deformation: 75%; "
        "checkpoint0, overall: 75%"
    )


def test_a_study_without_runs_is_refused_in_one_line(study, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        study.main(["study.py", f"--results={tmp_path}"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- The shell script ---


SETUP = """cd {folder}
PATH="{folder}/bin:$PATH"
"""
RECIPE = """until_sft() { echo "until_sft $1 $2" >> log; }
"""
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> log
for word in "$@"; do
  case $word in --out=*) mkdir -p "${word#--out=}" && touch "${word#--out=}"/FILES ;; esac
done
"""


@pytest.fixture
def shell(tmp_path):
    """Runs study.sh with stubs that log their arguments; returns the lines of a run."""
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "study.sh").write_text((ROOT / "scripts" / "study.sh").read_text())
    (tmp_path / "scripts" / "setup.sh").write_text(SETUP.format(folder=tmp_path))
    (tmp_path / "scripts" / "recipe.sh").write_text(RECIPE)
    files = {"aesthetic-jax": ["metrics.json", "table.npz"], "python": ["unused"]}
    for name, made in files.items():
        lines = STUB
        for file in made[1:]:
            lines = lines.replace("FILES", f'FILES "${{word#--out=}}"/{file}')
        (tmp_path / "bin" / name).write_text(lines.replace("FILES", made[0]))
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*words):
        (tmp_path / "log").write_text("")
        command = ["bash", tmp_path / "scripts" / "study.sh", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        return result, (tmp_path / "log").read_text().splitlines()

    return run


def flag(line, name):
    return re.search(rf"--{name}=(\S+)", line).group(1)


def test_the_shell_script_runs_every_arm_on_every_seed(shell, endpoints, tmp_path):
    result, log = shell(tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert [line.split()[-1] for line in log if "until_sft" in line] == ["0", "1"]
    sweeps = [line for line in log if " sweep " in line]
    stage1, stage2 = sweeps[:10], sweeps[10:]
    for checkpoint in (0, 1):
        last = [x for x in stage1 if flag(x, "out").endswith(f"sweep{checkpoint}")][-1]
        assert flag(last, "seeds") == "0,1,2,3,4"
        assert flag(last, "init_from").endswith(f"out/checkpoint{checkpoint}/runs/sft")
        stage1_arms = (endpoints.BASELINE, *endpoints.PRIMARY_ARMS)
        assert tuple(flag(last, "experiments").split(",")) == stage1_arms
        last = [x for x in stage2 if flag(x, "out").endswith(f"sweep{checkpoint}")][-1]
        assert flag(last, "seeds") == "0,1"
        assert tuple(flag(last, "experiments").split(",")) == endpoints.ARMS
    # The answers of a checkpoint to the test serve all seeds.
    start = tmp_path / "out" / "sweep1" / "seed4" / "start" / "metrics.json"
    assert start.resolve() == tmp_path / "out" / "checkpoint1" / "start" / "metrics.json"
    assert log[-1].startswith("python scripts/study.py --step=report")

    result, again = shell(tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert not [x for x in again if x.split()[1] in ("mine", "evaluate")]


def test_stages_of_the_shell_script(shell, tmp_path):
    result, log = shell(tmp_path / "out", "calibrate")
    assert result.returncode == 0
    assert not [line for line in log if " sweep " in line]
    assert log[-1].endswith("--step=calibration --results=" + f"{tmp_path}/out --questions=pool")
    assert len([line for line in log if " mine " in line]) == 2
    result, log = shell(tmp_path / "out", "1")
    assert len([line for line in log if " sweep " in line]) == 10
    result, log = shell(tmp_path / "out", "probe")
    assert [x.split()[1] for x in log if "aesthetic-jax" in x] == ["build", "mine", "mine"]
    result, log = shell(tmp_path / "out", "report")
    assert len(log) == 1
    result, log = shell(tmp_path / "out", "later")
    assert (result.returncode, log) == (2, [])
    assert "'later'" in result.stderr


def test_the_shell_script_is_clean():
    command = ["shellcheck", "scripts/study.sh"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_the_budget_s_arithmetic(endpoints):
    assert SWEEP.STEPS * SWEEP.BATCH * SWEEP.GROUP == endpoints.COMPLETIONS
    mining = math.ceil(SWEEP.POOL * SWEEP.MINE_ROLLOUTS / endpoints.STEP)
    assert (mining, SWEEP.STEPS - mining) == (32, 128)
