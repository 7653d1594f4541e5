"""What the tests share: commands run as a person runs them, and one cache of compiled programs."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from aesthetic_jax.data import dataset


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """A folder for JAX's persistent cache, so that each program is compiled once a session."""
    return tmp_path_factory.mktemp("jax_cache")


@pytest.fixture(scope="session")
def start(compilation_cache):
    """Starts `aesthetic-jax WORDS` in a process of its own, its output as text in pipes."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PLATFORMS": "cpu",
    }

    def run(*words):
        words = [sys.executable, "-m", "aesthetic_jax", *map(str, words)]
        return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


@pytest.fixture(scope="session")
def command(start):
    """Runs a command to its end; returns it with its exit code and output."""

    def run(*words):
        process = start(*words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def load_script():
    """Imports a file of scripts/ by its name, a module anew each time; it finds its neighbours as when it is run."""

    def load(name):
        folder = pathlib.Path(__file__).parents[1] / "scripts"
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_dataset():
    """Makes a data set in this process, in OUT/screening/1.0.0: (folder of the images, samples, OUT)."""

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
    """Checks that a command ended with one line on standard error that has some words, and exit code 2."""

    def check(result, *words):
        assert result.returncode == 2, result.stderr
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert len(lines) == 1, result.stderr
        for word in words:
            assert word in lines[0]

    return check
