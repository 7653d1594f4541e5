"""Fakes of gcloud, kubectl, uv and aesthetic-jax that keep a cloud in the folder $FAKE_CLOUD.

The first argument is the program to fake. The folder holds:

- `calls.jsonl`: every call of gcloud and kubectl;
- `queue.json`: the states that the queued resource will show, one per query;
- `plan.json`: what will happen: states, errors, ends of training processes;
- `NODE/WORKER`: home directories of the machines, in which commands really run;
- `starts.jsonl`: every start of a training process.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

cloud = pathlib.Path(os.environ["FAKE_CLOUD"])


def read(name):
    file = cloud / name
    return json.loads(file.read_text()) if file.exists() else {}


def write(name, content):  # atomically: other processes read it
    partial = cloud / f"{name}.{os.getpid()}"
    partial.write_text(json.dumps(content))
    partial.replace(cloud / name)


def append(name, content):
    with (cloud / name).open("a") as file:
        file.write(json.dumps(content) + "\n")


def take(kind):
    """The next planned item of a kind; None when none is left."""
    plan = read("plan.json")
    planned = plan.get(kind, [])
    if planned:
        write("plan.json", plan | {kind: planned[1:]})
    return planned[0] if planned else None


def gcloud(words):
    append("calls.jsonl", words)
    flags = dict(
        re.fullmatch(r"--([^=]*)=?(.*)", word, re.DOTALL).groups()
        for word in words
        if word.startswith("--")
    )
    operands = [word for word in words if not word.startswith("--")]
    if operands[:2] == ["storage", "rsync"]:
        return
    if operands[:2] == ["storage", "cp"]:
        target = cloud / operands[3].removeprefix("gs://")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(operands[2], target)
        return
    group, verb, *operands = operands[2:]
    error = take(f"{verb} errors")
    if error:
        sys.exit(f"ERROR: (gcloud.compute.tpus.{group}.{verb}) {error}")
    queue = read("queue.json")
    if group == "queued-resources" and verb == "create":
        if queue:
            sys.exit("ERROR: ALREADY_EXISTS")
        slices = int(flags.get("node-count", 1))
        nodes = (
            [f"{flags['node-prefix']}-{i}" for i in range(slices)]
            if slices > 1
            else [flags["node-id"]]
        )
        for node in nodes:
            for worker in range(2):
                (cloud / node / str(worker)).mkdir(parents=True)
        write("queue.json", {"states": take("created") or ["ACTIVE"], "nodes": nodes})
        return
    if not queue:
        sys.exit(
            f"ERROR: (gcloud.compute.tpus.{group}.{verb}) NOT_FOUND: "
            f"Resource '{operands[0]}' was not found"
        )
    states = queue["states"]
    if group == "queued-resources" and verb == "describe":
        if "failedData" in flags["format"]:
            print("the zone has\nnone of these")
            return
        write("queue.json", queue | {"states": states[1:] or states})
        print(states[0])
        print("Updates are available for some Google Cloud CLI components.", file=sys.stderr)
    elif verb == "delete":
        if states[0] == "SUSPENDING":
            sys.exit("ERROR: FAILED_PRECONDITION: it is being suspended")
        (cloud / "queue.json").unlink()
        for node in queue["nodes"]:
            shutil.rmtree(cloud / node)
    elif verb == "describe":
        print(take("node states") or "READY")
    elif states[0] != "ACTIVE":
        sys.exit("ERROR: the TPU is in state PREEMPTED")
    else:
        node = operands[-1].removesuffix(":")
        wanted = range(2) if flags["worker"] == "all" else [int(flags["worker"])]
        homes = [cloud / node / str(worker) for worker in wanted]
        if verb == "scp":
            for home in homes:
                shutil.copy(operands[0], home)
            return
        shells = [
            subprocess.Popen(
                ["bash", "-c", flags["command"]], cwd=home, env=os.environ | {"HOME": str(home)}
            )
            for home in homes
        ]
        codes = [shell.wait() for shell in shells]
        broken = read("queue.json").get("states", ["gone"])[0] != "ACTIVE"
        sys.exit(255 if broken else next((code for code in codes if code), 0))


def kubectl(words):
    append("calls.jsonl", [*words, sys.stdin.read()])


def uv(words):
    if words[0] == "pip" and words[-1] == ".":
        program = pathlib.Path(".venv/bin/aesthetic-jax")
        program.parent.mkdir(parents=True)
        program.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" aesthetic-jax "$@"\n'
        )
        program.chmod(0o755)


def aesthetic_jax(words):
    """A training process. Its n-th start on a machine ends as the n-th planned end says.

    After the last planned end, that one repeats.
    """
    home = pathlib.Path(os.environ["HOME"])
    machine = f"{home.parent.name}/{home.name}"
    append(
        "starts.jsonl",
        [machine, os.environ["AESTHETIC_JAX_COMMIT"], str(pathlib.Path.cwd()), words],
    )
    starts = [
        json.loads(line)[0] for line in (cloud / "starts.jsonl").read_text().splitlines()
    ].count(machine)
    ends = read("plan.json")["ends"]
    end = ends[min(starts, len(ends)) - 1]
    shown = {
        "preempted": ["SUSPENDING", "SUSPENDING", "SUSPENDED"],
        "killed": ["SUSPENDED"],
        "killed, not shown yet": ["ACTIVE", "ACTIVE", "SUSPENDED"],
    }
    if end in shown:
        write("queue.json", read("queue.json") | {"states": shown[end]})
        if end != "preempted":
            os.kill(os.getpid(), signal.SIGKILL)
        end = 75
    if end == "deleted":
        (cloud / "queue.json").unlink(missing_ok=True)
        end = 1
    if end == "waits":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        signal.alarm(120)  # ends it if the test fails
        (home / "ready").touch()
        while True:
            signal.pause()
    print(f"ends with {end}")
    sys.exit(end)


if __name__ == "__main__":
    {"gcloud": gcloud, "kubectl": kubectl, "uv": uv, "aesthetic-jax": aesthetic_jax}[sys.argv[1]](
        sys.argv[2:]
    )
