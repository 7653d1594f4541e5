"""What the tests share: commands run as a person runs them, and one cache of compiled programs."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """A folder for JAX's persistent cache, so that each program is compiled once a session."""
    return tmp_path_factory.mktemp("jax_cache")


@pytest.fixture(scope="session")
def command(compilation_cache):
    """Runs `aesthetic-jax WORDS` in a process of its own; returns it finished, with its output as text."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PLATFORMS": "cpu",
    }

    def run(*words, **variables):
        words = [sys.executable, "-m", "aesthetic_jax", *map(str, words)]
        return subprocess.run(words, env=environment | variables, capture_output=True, text=True, check=False)

    return run
