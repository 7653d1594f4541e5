"""A fake bucket, for tests of runs in an object store."""

import pytest
from etils.epath import backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class _Bucket(DirFileSystem):
    def open(self, path, mode="rb", **settings):
        return super().open(path, mode=mode.replace("a", "w"), **settings)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that behaves as gcsfs shows a bucket, which appends to nothing."""
    files = _Bucket(str(tmp_path), LocalFileSystem(auto_mkdir=True))
    monkeypatch.setattr(backend.fsspec_backend, "fs", lambda path: files)
    return "gs://bucket"
