import subprocess

from aesthetic_jax.training.provenance import _git_commit


def test_the_commit_comes_from_the_installation_or_the_repository(monkeypatch, tmp_path):
    monkeypatch.delenv("AESTHETIC_JAX_COMMIT", raising=False)
    words = ["git", "-C", __file__.rpartition("/")[0], "rev-parse", "HEAD"]
    assert _git_commit() == (
        subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or None
    )
    monkeypatch.setenv("AESTHETIC_JAX_COMMIT", "abc")
    assert _git_commit() == "abc"
    monkeypatch.setenv("AESTHETIC_JAX_COMMIT", "")
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without git
    assert _git_commit() is None
