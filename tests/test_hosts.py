"""Several processes as several hosts: the same run as one process, resumes, SIGTERM, a death."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
DEVICES = 4  # of a run, over all its processes
SMALL = (
    "--config.batch_size=8",
    "--config.micro_batches=2",
    "--config.num_steps=4",
    "--config.checkpoint_every=2",
    "--config.keep_checkpoints=9",
    "--config.log_every=1",
    "--config.hard_cases.round_steps=3",
    "--config.hard_cases.mode=two_stage",
    "--config.hard_cases.mine_step=3",
    "--config.hard_cases.mine_rollouts=2",
    "--config.max_completion_length=8",
    "--config.grpo.num_generations=2",
)


@pytest.fixture(scope="module")
def data(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    words = ("--num=40", "--image_size=56", "--workers=1", "--splits=0.9,0.1,0")
    assert command("synthesize", f"--out={folder}", *words).returncode == 0
    return folder


@pytest.fixture(scope="module")
def launch():
    """Starts a command in so many processes, DEVICES devices together."""

    def run(processes, *words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(DEVICES // processes)}
        if processes > 1:
            # On CPUs, a process that reads a program from the cache and one that compiles it
            # may wait for each other for ever.
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        hosts = (
            [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={processes}"]
            if processes > 1
            else []
        )
        return [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "aesthetic_jax",
                    *map(str, words),
                    *hosts,
                    *([f"--process_id={i}"] if hosts else []),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]

    return run


@pytest.fixture(scope="module")
def train_words(data):
    def words(run, *more):
        config = f"--config={CONFIGS}/quickstart.py:hcm_grpo"
        return (
            "train",
            config,
            f"--config.data.manifest={data}/manifest.jsonl",
            f"--workdir={run}",
            *SMALL,
            *more,
        )

    return words


@pytest.fixture(scope="module")
def runs(launch, train_words, data):
    """The same run in 1, 2 and 4 processes."""
    for processes in (1, 2, 4):
        finish(launch(processes, *train_words(data / f"run{processes}")))
    return data


def finish(processes):
    for process, (_, errors) in [(process, process.communicate()) for process in processes]:
        assert process.returncode == 0, errors[-3000:]


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_log(ours, theirs):
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() & b.keys():
            if not (name.endswith("_s") or name.startswith("time")):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)


def saved(run, step):
    """Parameters and progress of a checkpoint, on one device however many wrote it."""
    reader, one = ocp.StandardCheckpointer(), jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def read(part):
        folder = run / "checkpoints" / str(step) / part
        shapes = reader.metadata(folder).item_metadata.tree
        return reader.restore(
            folder,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes),
        )

    return read("parameters"), read("progress")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_do_what_one_does(runs, processes):
    ours, one = runs / f"run{processes}", runs / "run1"
    same_log(log(ours), log(one))
    for name in ("completions.jsonl", "table.npz"):
        assert (ours / "mined" / "3" / name).read_bytes() == (
            one / "mined" / "3" / name
        ).read_bytes()
    (parameters, progress), (wanted, plan) = saved(ours, 4), saved(one, 4)
    jax.tree.map(np.testing.assert_array_equal, progress, plan)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), parameters, wanted
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 2)])
def test_a_checkpoint_continues_in_another_number_of_processes(
    runs, launch, train_words, before, after, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(runs / f"run{before}", run)
    for step in (3, 4):
        shutil.rmtree(run / "checkpoints" / str(step), ignore_errors=True)
    finish(launch(after, *train_words(run)))
    same_log(log(run), log(runs / "run1"))


@pytest.mark.slow
def test_sigterm_at_one_host_stops_all_after_the_same_step(launch, train_words, tmp_path):
    run = tmp_path / "run"
    processes = launch(
        2, *train_words(run, "--config.num_steps=4000", "--config.checkpoint_every=4000")
    )
    wait_until_logged(run, processes)
    processes[1].terminate()
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 75, errors[-3000:]
        assert "stopped by SIGTERM" in errors
    assert [x.name for x in (run / "checkpoints").iterdir()] == [str(log(run)[-1]["step"])]


def wait_until_logged(run, processes):
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert all(process.poll() is None for process in processes), [
            x.communicate()[1][-2000:] for x in processes
        ]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_process_takes_the_others_down_and_is_named(launch, train_words, tmp_path):
    run = tmp_path / "run"
    processes = launch(2, *train_words(run, "--config.num_steps=4000"))
    wait_until_logged(run, processes)
    processes[1].kill()
    began = time.monotonic()
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode not in (0, None)
    assert time.monotonic() - began < 60
    assert re.search(r"task:1\b|tasks are unhealthy[^\n]*\n1\n", errors), errors[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--num_processes=2"], ["--coordinator_address", "--process_id"]),
        (
            ["--num_processes=2", "--process_id=2", "--coordinator_address=127.0.0.1:1"],
            ["--process_id=2", "0 to 1"],
        ),
        (["--config.mesh.fsdp=3"], ["config.mesh", "fsdp=3", "4 devices"]),
        (["--config.batch_size=12"], ["config.batch_size", "config.micro_batches", "fsdp=4"]),
    ],
)
def test_what_does_not_fit_gets_one_line(launch, train_words, tmp_path, words, expected):
    (process,) = launch(1, *train_words(tmp_path / "run", *words))
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1
    for word in expected:
        assert word in lines[0]
