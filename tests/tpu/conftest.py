"""Fixtures: a fake cloud in a folder (fakes.py) with a copy of tpu/, and a slice set up in it."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SLICE = ["--name=pod", "--zone=z-1", "--project=mine"]


class Cloud:
    """A copy of tpu/ in a Git repository of its own, and the folder of the fake cloud."""

    def __init__(self, folder):
        self.repository, self.folder, programs = (
            folder / "repository",
            folder / "cloud",
            folder / "bin",
        )
        shutil.copytree(ROOT / "tpu", self.repository / "tpu")
        self.folder.mkdir()
        programs.mkdir()
        for name in ("gcloud", "uv", "kubectl"):
            program = programs / name
            program.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -S "{ROOT}/tests/tpu/fakes.py" {name} "$@"\n'
            )
            program.chmod(0o755)
        identity = {
            f"GIT_{who}_{what}": "x"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        self.environment = (
            os.environ
            | identity
            | {
                "PATH": f"{programs}:{os.environ['PATH']}",
                "FAKE_CLOUD": str(self.folder),
                "HOME": str(folder),
            }
        )
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
            subprocess.run(["git", *words], cwd=self.repository, env=self.environment, check=True)
        words = ["git", "rev-parse", "HEAD"]
        self.commit = subprocess.run(
            words, cwd=self.repository, capture_output=True, text=True, check=True
        ).stdout.strip()

    def plan(self, **plan):
        (self.folder / "plan.json").write_text(
            json.dumps({key.replace("_", " "): plan[key] for key in plan})
        )

    def start(self, script, *words):
        command = [f"{self.repository}/tpu/{script}.sh", *words]
        pipes = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        return subprocess.Popen(command, env=self.environment, **pipes)

    def run(self, script, *words):
        process = self.start(script, *words)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def printed(self, script, *words):
        """The commands that a dry run prints, as lists of words; checks that it runs none."""
        run = self.run(script, "--dry_run", *words)
        assert (run.returncode, run.stderr) == (0, "")
        assert self.calls() == []
        return [shlex.split(line) for line in run.stdout.splitlines()]

    def _lines(self, name):
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def calls(self, *start):
        """Calls of gcloud or kubectl that start with these words."""
        return [words for words in self._lines("calls.jsonl") if words[: len(start)] == list(start)]

    def verbs(self):
        """Verbs called on the queued resource in order, without `describe`."""
        calls = self.calls("compute", "tpus", "queued-resources")
        return [words[3] for words in calls if words[3] != "describe"]

    def starts(self):
        """Every start of a training process: machine, commit, directory, arguments."""
        return self._lines("starts.jsonl")


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.plan(ends=[0])
    return cloud


@pytest.fixture
def ready(cloud):
    """A fake cloud with an active slice that is set up."""
    for script in ("create", "setup"):
        assert cloud.run(script, *SLICE, "--topology=v5e:4x4").returncode == 0
    return cloud
