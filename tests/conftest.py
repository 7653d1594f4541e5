"""Fixtures for all tests: run commands, load scripts, make data sets, check error messages.

Every process of a test session, in-process tests and commands alike, shares one cache of compiled
programs: $JAX_COMPILATION_CACHE_DIR, or .jax_cache at the top level.
"""

import collections
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Set before the first import of JAX, which reads them once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from aesthetic_jax.data import dataset  # noqa: E402


def pytest_collection_modifyitems(items):
    """Runs the files with most slow tests first, so that all workers finish at about one time."""
    slow = collections.Counter(
        item.path
        for item in items
        if item.get_closest_marker("slow") or item.get_closest_marker("parity")
    )
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def start():
    """Starts `aesthetic-jax WORDS` in a separate process, with its output as text in pipes."""

    def run(*words):
        words = [sys.executable, "-m", "aesthetic_jax", *map(str, words)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


@pytest.fixture(scope="session")
def command(start):
    """Runs a command to its end; returns its exit code and output."""

    def run(*words):
        process = start(*words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def load_script():
    """Imports a file of scripts/ by its name, as a new module each time; its imports work too."""

    def load(name):
        folder = ROOT / "scripts"
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_dataset():
    """Builds a data set in this process, from (image folder, samples), in OUT/screening/1.0.0."""

    def make(source, samples, out):
        shards = dataset.plan_shards(str(source), samples)
        unfinished = pathlib.Path(out) / "screening" / "unfinished"
        unfinished.mkdir(parents=True)
        for shard in shards:
            dataset.write_shard(str(source), str(unfinished), shard)
        dataset.finish(str(unfinished), shards, str(unfinished.with_name("1.0.0")))

    return make


@pytest.fixture(scope="session")
def refuses():
    """Checks that a command exits with 2 and one line on standard error that has some words."""

    def check(result, *words):
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, result.stderr
        for word in words:
            assert word in lines[0]

    return check
