"""The scripts of tpu/: commands printed with --dry_run, effects on a fake cloud (fakes.py)."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = "create setup run watch fetch delete supervise gke".split()
ODD = 'it\'s "odd" $(date) $HOME ; é *'
SLICE = ["--name=pod", "--zone=z-1", "--project=mine"]


def refused(run, *expected):
    """Checks that a run ended with one line of error and exit code 2."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert ": error: " in run.stderr
    for text in expected:
        assert text in run.stderr


SHELLCHECK = shutil.which(
    "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
)


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_passes():
    files = sorted(str(file) for file in (ROOT / "tpu").glob("*.sh"))
    run = subprocess.run([SHELLCHECK, *files], capture_output=True, text=True, check=False)
    assert run.stdout + run.stderr == ""


CREATE = "gcloud compute tpus queued-resources create pod".split()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--topology=v5e:4x4"],
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=pod",
        ),
        (
            ["--topology=v6e:8x8"],
            "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --node-id=pod",
        ),
        (
            ["--topology=v5p:2x2x4"],
            "--accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --node-id=pod",
        ),
        (
            ["--topology=v5p:8x8x8"],
            "--accelerator-type=v5p-1024 --runtime-version=v2-alpha-tpuv5 --node-id=pod",
        ),
        (
            ["--topology=v4:2x2x2"],
            "--accelerator-type=v4-16 --runtime-version=tpu-ubuntu2204-base --node-id=pod",
        ),
        (
            ["--topology=v5e:16x16", "--slices=2", "--spot"],
            "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite "
            "--node-count=2 --node-prefix=pod --spot",
        ),
        (
            [
                "--topology=v5e:2x4",
                "--reserved",
                "--runtime=other",
                "--create_flag=--network=a",
                "--create_flag=--tags=b",
            ],
            "--accelerator-type=v5litepod-8 --runtime-version=other --node-id=pod "
            "--reserved --network=a --tags=b",
        ),
    ],
)
def test_create_requests_what_the_flags_say(cloud, flags, expected):
    create, query = cloud.printed("create", *SLICE, *flags)
    assert create == [*CREATE, *expected.split(), "--zone=z-1", "--project=mine", "--quiet"]
    assert query[:6] == "gcloud compute tpus queued-resources describe pod".split()


def test_every_worker_of_every_slice_is_reached(cloud):
    for script in ("setup", "run", "supervise"):
        words = ["--", "train"] if script != "setup" else []
        printed = cloud.printed(script, *SLICE, "--topology=v5e:4x4", "--slices=3", *words)
        reached = [command for command in printed if command[3:5] == ["tpu-vm", "ssh"]]
        expected = ["pod-0", "pod-1", "pod-2"] * (2 if script == "supervise" else 1)
        assert [command[5] for command in reached] == expected
        for command in printed:
            if command[0] == "gcloud":
                assert {"--zone=z-1", "--project=mine", "--quiet"} < set(command)
        assert all("--worker=all" in command for command in reached)


def test_odd_names_survive_the_shell(cloud):
    slice_ = [f"--name={ODD}", f"--zone={ODD}", f"--project={ODD}"]
    for script in SCRIPTS[:-1]:
        more = [f"--workdir=gs://{ODD}", f"--to={ODD}", "--topology=v5e:2x2"]
        printed = cloud.printed(script, *slice_, *more, "--", "echo", ODD)
        for command in printed:
            if command[:3] == ["gcloud", "compute", "tpus"]:
                assert {f"--zone={ODD}", f"--project={ODD}"} < set(command)
                assert ODD in command or f"{ODD}:" in command
    command = cloud.printed("run", *slice_, "--", "echo", ODD, "")[0]
    (remote,) = [word for word in command if word.startswith("--command=")]
    assert shlex.split(remote.removeprefix("--command="))[4:] == ["echo", ODD, ""]
    assert cloud.printed("fetch", "--workdir=gs://a b", "--to=c d", "--checkpoints")[1] == [
        *"gcloud storage rsync --recursive".split(),
        "gs://a b",
        "c d",
    ]


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        ("create", ["--zone=z", "--topology=v5e:4x4"], "--name"),
        ("create", ["--name=pod", "--topology=v5e:4x4"], "--zone"),
        ("create", ["--name=pod", "--zone=z"], "--topology"),
        ("create", [*SLICE, "--topology=v5e:2x8"], "v5e:2x8"),
        ("create", [*SLICE, "--topology=v5p:4x4"], "v5p:4x4"),
        ("create", [*SLICE, "--topology=v5e:a[$(touch x)]x4"], "--topology"),
        ("create", [*SLICE, "--topology=v5e:4x4", "--spot", "--reserved"], "--spot and --reserved"),
        ("create", [*SLICE, "--topology=v5e:4x4", "--slices=0"], "--slices"),
        ("create", [*SLICE, "--topology=v5e:4x4", "--slices=two"], "--slices=two"),
        ("create", [*SLICE, "--topology=v5e:4x4", "--slices=08"], "--slices=08"),
        ("create", [*SLICE, "--topologie=v5e:4x4"], "--topologie"),
        ("create", [*SLICE, "pod"], "'pod'"),
        ("setup", [*SLICE, "--ref=nowhere"], "--ref=nowhere"),
        ("run", SLICE, "command"),
        ("watch", [*SLICE, "--slices=2", "--slice=2"], "--slice=2"),
        ("fetch", ["--workdir=bucket/run", "--to=x"], "--workdir=bucket/run"),
        ("fetch", ["--workdir=gs://b", "--to=x", "--name=pod"], "--zone"),
        ("delete", ["--name=pod"], "--zone"),
        ("supervise", [*SLICE, "--topology=v5e:4x4"], "command"),
        ("supervise", [*SLICE, "--topology=v9:4x4", "--", "train"], "v9:4x4"),
        (
            "supervise",
            [*SLICE, "--topology=v5e:4x4", "--max_failures=0", "--", "train"],
            "--max_failures",
        ),
        ("gke", ["--name=pod", "--topology=v5e:4x4", "--", "train"], "--image"),
        (
            "gke",
            ["--name=My pod", "--image=i", "--topology=v5e:4x4", "--", "train"],
            "--name=My pod",
        ),
        (
            "gke",
            ["--name=pod", "--image=i", "--topology=v5e:2x4", "--slices=2", "--", "train"],
            "--slices=2",
        ),
    ],
)
def test_bad_input_is_one_line(cloud, script, flags, expected):
    refused(cloud.run(script, *flags), expected)
    assert cloud.calls() == []


def test_help_shows_usage_and_flags(cloud):
    for script in SCRIPTS:
        run = cloud.run(script, "--help")
        assert run.returncode == 0
        assert f"tpu/{script}.sh --" in run.stdout
        assert "--max_failures=N" in run.stdout


def test_create_waits_until_the_slices_are_active(cloud):
    cloud.plan(created=[["WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"]])
    run = cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0")
    assert (run.returncode, run.stdout) == (0, "")
    shown = [line.split()[-1] for line in run.stderr.splitlines()]
    assert shown == ["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert cloud.run("create", *SLICE, "--topology=v5e:4x4").returncode == 0
    assert cloud.verbs() == ["create"]


def test_create_replaces_a_suspended_or_failed_queued_resource(cloud):
    for state in ("SUSPENDED", "FAILED"):
        (cloud.folder / "queue.json").write_text(json.dumps({"states": [state], "nodes": []}))
        assert cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0").returncode == 0
        assert cloud.verbs() == ["delete", "create"]
        (cloud.folder / "calls.jsonl").unlink()
        shutil.rmtree(cloud.folder / "pod")


def test_create_prints_why_a_request_failed(cloud):
    cloud.plan(created=[["CREATING", "FAILED"]])
    run = cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0")
    assert run.returncode == 1
    assert run.stderr.endswith("the zone has\nnone of these\n")
    cloud.plan(create_errors=["INVALID_ARGUMENT: no such type"])
    (cloud.folder / "queue.json").unlink()
    run = cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0")
    assert run.returncode == 1
    assert "no such type" in run.stderr


def test_a_failing_query_is_tried_five_times(cloud):
    cloud.plan(describe_errors=["UNAVAILABLE"] * 4)
    assert cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0").returncode == 0
    cloud.plan(describe_errors=["PERMISSION_DENIED: no"] * 5)
    run = cloud.run("create", *SLICE, "--topology=v5e:4x4", "--poll=0")
    assert run.returncode == 1
    assert "PERMISSION_DENIED: no" in run.stderr
    assert cloud.verbs() == ["create"]


def test_setup_installs_a_commit_once_on_every_worker(ready):
    installed = [
        ready.folder / "pod" / worker / "aesthetic_jax" / ready.commit / ".venv/installed"
        for worker in "01"
    ]
    before = [file.stat().st_mtime_ns for file in installed]
    assert ready.run("setup", *SLICE).returncode == 0
    assert [file.stat().st_mtime_ns for file in installed] == before
    assert not list(ready.folder.parent.glob("tmp.*"))


def test_a_command_reaches_every_worker_unchanged(ready):
    words = ["train", f"--workdir=gs://b/{ODD}", "--config.a=(1, 2)", "", "a\nb", "\\"]
    assert ready.run("run", *SLICE, "--", "aesthetic-jax", *words).returncode == 0
    trees = {
        f"pod/{worker}": str(ready.folder / f"pod/{worker}/aesthetic_jax/{ready.commit}")
        for worker in "01"
    }
    expected = [[machine, ready.commit, tree, words] for machine, tree in trees.items()]
    assert sorted(ready.starts()) == sorted(expected)


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_run_exits_with_the_code_of_the_command(ready, code):
    ready.plan(ends=[code])
    run = ready.run("run", *SLICE, "--", "aesthetic-jax", "train")
    assert run.returncode == code
    # After an error the end of the log is shown.
    assert (f"ends with {code}" in run.stderr) == (code != 0)


def test_exit_codes_2_and_75_of_several_slices_win(cloud):
    for script in ("create", "setup"):
        assert cloud.run(script, *SLICE, "--topology=v5e:4x4", "--slices=3").returncode == 0
    for codes, expected in (("1 75 1", 75), ("75 2 1", 2), ("0 0 3", 3), ("0 0 0", 0)):
        node = '"$(basename "$(dirname "$HOME")")"'
        answer = f'set -- {codes}; node={node}; shift "${{node#pod-}}"; exit "$1"'
        assert (
            cloud.run("run", *SLICE, "--slices=3", "--", "bash", "-c", answer).returncode
            == expected
        )


def worker(cloud, number, *words):
    """Starts worker.sh on one machine, as gcloud does."""
    home = cloud.folder / "pod" / str(number)
    command = ["bash", "aesthetic_jax/current/tpu/worker.sh", *words]
    environment = cloud.environment | {"HOME": str(home)}
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(file):
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} was never written"
        time.sleep(0.02)


def test_a_broken_connection_neither_stops_nor_repeats_a_run(ready):
    ready.plan(ends=["waits"])
    mark = ready.folder / "pod/0/ready"
    first = worker(ready, 0, "run", "attempt-1", "aesthetic-jax", "train")
    wait_for(mark)
    os.killpg(first.pid, signal.SIGKILL)  # all processes of the connection
    first.wait()
    again = worker(ready, 0, "run", "attempt-1", "aesthetic-jax", "train")  # as gcloud retries
    other = worker(ready, 0, "run", "attempt-2", "aesthetic-jax", "evaluate")
    assert other.wait(20) == 2
    assert "busy with: aesthetic-jax train" in other.stderr.read()
    assert again.poll() is None
    assert worker(ready, 0, "stop").wait(20) == 0
    assert again.wait(20) == 75
    # The connection may also break after the end.
    assert worker(ready, 0, "run", "attempt-1", "aesthetic-jax", "train").wait(20) == 75
    assert len(ready.starts()) == 1
    ready.plan(ends=[0])
    assert worker(ready, 0, "run", "attempt-3", "aesthetic-jax", "train").wait(20) == 0
    assert len(ready.starts()) == 2


def test_stop_stops_a_run_on_every_worker(ready):
    ready.plan(ends=["waits"])
    process = ready.start("run", *SLICE, "--", "aesthetic-jax", "train")
    for number in "01":
        wait_for(ready.folder / "pod" / number / "ready")
    assert ready.run("run", *SLICE, "--stop").returncode == 0
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert ready.run("run", *SLICE, "--stop").returncode == 0  # nothing to stop


def test_watch_and_fetch_and_delete(ready):
    query, follow = (
        shlex.split(line) for line in ready.run("watch", *SLICE, "--dry_run").stdout.splitlines()
    )
    assert query[:6] == "gcloud compute tpus queued-resources describe pod".split()
    assert follow[:8] == "gcloud compute tpus tpu-vm ssh pod --worker=0 --zone=z-1".split()
    assert ready.run("run", *SLICE, "--", "echo", "hello").returncode == 0
    run = ready.run("fetch", *SLICE, "--workdir=gs://bucket/run/", f"--to={ready.folder}/results")
    assert run.returncode == 0, run.stderr
    logs = list((ready.folder / "bucket/run/logs").iterdir())
    assert [log.read_text() for log in logs] == ["hello\n"]  # both fake machines have one host name
    expected = [
        "storage",
        "rsync",
        "--recursive",
        "gs://bucket/run/",
        f"{ready.folder}/results",
        "--exclude=^checkpoints/",
    ]
    assert ready.calls("storage", "rsync") == [expected]
    assert ready.run("delete", *SLICE).returncode == 0
    assert "--force" in ready.calls("compute", "tpus", "queued-resources", "delete")[0]
    assert ready.run("delete", *SLICE).returncode == 1  # already deleted


def test_the_commands_of_the_readme_run(cloud):
    text = (ROOT / "tpu/README.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in blocks.splitlines() if line.startswith(("slice=", "train=", "tpu/"))]
    used = {line.split()[0] for line in lines if line.startswith("tpu/")}
    assert used == {f"tpu/{script}.sh" for script in SCRIPTS}
    script = "\n".join(re.sub(r"^(tpu/\w+\.sh)", r"\1 --dry_run", line) for line in lines)
    command = ["bash", "-euo", "pipefail", "-c", script]
    environment = cloud.environment | {"image": "registry/image:1"}
    run = subprocess.run(
        command, cwd=cloud.repository, env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert cloud.calls() == []
