"""Checkpoints by their name on the hub, against a small hub on loopback and an offline cache."""

import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import constants

import aesthetic_jax
from aesthetic_jax.checkpoints import hub
from aesthetic_jax.checkpoints.hub import local_checkpoint, parse_hub_name
from aesthetic_jax.data.tokenizer import save_tokenizer, train_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL

TOKEN = "hf_secretsecretsecret"


class SmallHub:
    """Speaks the endpoints that snapshot_download needs; `url` is its HF_ENDPOINT."""

    def __init__(self):
        self.files = {}  # (repo, commit) -> {file name: bytes}
        self.commits = {}  # (repo, revision) -> commit
        self.gated = {}  # repo -> HTTP status
        self.broken = None  # (HTTP status, headers) of every answer
        self.requests = []
        self.tokens = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def publish(self, repo, files, *revisions):
        listing = repr(sorted(files.items())).encode()
        commit = hashlib.sha1(listing).hexdigest()
        self.files[repo, commit] = files
        for revision in (commit, *revisions):
            self.commits[repo, revision] = commit
        return commit

    def downloads(self):
        """Names of the files whose content was asked for."""
        return sorted(
            path.rpartition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        )

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: SmallHub

    def do_GET(self):
        self._answer(send_body=True)

    def do_HEAD(self):
        self._answer(send_body=False)

    def log_message(self, *_):
        pass

    def _answer(self, send_body):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        self.hub.tokens.append(self.headers.get("Authorization"))
        status, headers, body = self._look_up(path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def _look_up(self, path):
        if self.hub.broken:
            return *self.hub.broken, b""
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path):
            repo, kind, revision = match.groups()
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = match.groups()
            kind = "file"
        else:
            return 404, {}, b""
        if repo not in {known for known, _ in self.hub.commits}:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.hub.commits.get((repo, revision))
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if kind == "file" and repo in self.hub.gated:
            return self.hub.gated[repo], {"X-Error-Code": "GatedRepo"}, b""
        files = self.hub.files[repo, commit]
        if kind == "revision":
            return _json({"id": repo, "sha": commit, "siblings": [{"rfilename": x} for x in files]})
        if kind == "tree":
            return _json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
                    for name, content in files.items()
                ]
            )
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        headers = {"ETag": f'"{_blob(files[name])}"', "X-Repo-Commit": commit}
        return 200, headers, files[name]


def _blob(content):
    return hashlib.sha1(content).hexdigest()


def _json(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def small_hub(monkeypatch, tmp_path):
    """The hub of this process, with an empty cache and an empty working directory."""
    server = SmallHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    hub._snapshot.cache_clear()
    yield server
    hub._snapshot.cache_clear()
    with contextlib.suppress(OSError):
        server.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Files of a small checkpoint with a tokenizer, and other files that hub repositories hold."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(["which image passes"], 300)
    save_tokenizer(tokenizer, str(folder / "tokenizer"))
    config = InternVLConfig(
        VisionConfig(width=16, layers=2, heads=2, mlp_width=24, image_size=28, patch_size=7),
        TextConfig(
            width=16, layers=2, heads=2, kv_heads=1, mlp_width=24, vocab_size=tokenizer.size
        ),
        image_token=tokenizer.image,
    )
    model = InternVL(config, rngs=nnx.Rngs(0))
    aesthetic_jax.save_pretrained(model, str(folder / "hf"), source=str(folder / "tokenizer"))
    files = {file.name: file.read_bytes() for file in (folder / "hf").iterdir()}
    others = {
        "pytorch_model.bin": b"\x80\x04.",
        "modeling_internvl_chat.py": b"raise SystemExit",
        "README.md": b"# a model",
        "examples/image1.jpg": b"\xff\xd8",
        "onnx/config.json": b"{}",
        "onnx/model.safetensors": b"",
        "merges.txt": b"#version: 0.2\n",
        "chat_template.jinja": b"{{ messages }}",
    }
    return model, files | others


KEPT = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors",
    "merges.txt",
    "chat_template.jinja",
}


def assert_refused(name, *words):
    """The name is refused in one line that begins with it, holds some words and no secret."""
    with pytest.raises(UserError) as error:
        local_checkpoint(name)
    message = str(error.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert TOKEN not in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("name", ["owner/model", "hf://owner/model"])
def test_a_model_is_downloaded_and_loaded(name, small_hub, checkpoint):
    model, files = checkpoint
    small_hub.publish("owner/model", files, "main")
    loaded = aesthetic_jax.load_pretrained(name)
    expected, found = (
        jax.tree.leaves(nnx.to_pure_dict(nnx.state(x, nnx.Param))) for x in (model, loaded)
    )
    for x, y in zip(expected, found, strict=True):
        np.testing.assert_array_equal(x, y)


def test_only_safetensors_json_and_tokenizer_files_are_fetched(small_hub, checkpoint):
    small_hub.publish("owner/model", checkpoint[1], "main")
    folder = local_checkpoint("owner/model")
    assert set(small_hub.downloads()) == KEPT
    assert {str(x) for x in os.listdir(folder)} == KEPT


def test_a_process_sees_one_state_of_a_branch(small_hub, checkpoint):
    first = small_hub.publish("owner/model", checkpoint[1], "main")
    folder = local_checkpoint("owner/model")
    small_hub.publish("owner/model", {"config.json": b"{}"}, "main")
    requests = len(small_hub.requests)
    assert local_checkpoint("hf://owner/model") == folder
    assert folder.endswith(first)
    assert len(small_hub.requests) == requests


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "commit"])
def test_a_revision(revision, small_hub):
    old = small_hub.publish("owner/model", {"config.json": b"old"}, "v1", "refs/pr/1")
    small_hub.publish("owner/model", {"config.json": b"new"}, "main")
    revision = old if revision == "commit" else revision
    folder = local_checkpoint(f"hf://owner/model@{revision}")
    with open(f"{folder}/config.json") as file:
        assert file.read() == "old"


def test_paths_stay_as_they_are(small_hub, tmp_path):
    run = tmp_path / "cwd" / "runs" / "sft"
    run.mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("")
    for path in (str(run), "runs/sft", "./runs/sft", "runs/sft/", str(file), "gs://bucket/runs/1"):
        assert local_checkpoint(path) == path
    assert not small_hub.requests


def test_no_such_model(small_hub):
    message = assert_refused("hf://owner/none", "no such model", "private", "127.0.0.1")
    assert "directory" not in message


def test_a_mistyped_path(small_hub, tmp_path):
    (tmp_path / "cwd" / "runs" / "sft").mkdir(parents=True)
    assert_refused("runs/stf", "there is no such directory, and", "no such model")
    small_hub.requests.clear()
    for path in ("runs/stf/checkpoints/7", "/runs/stf", "./runs/stf", "../stf", "stf", "runs/stf/"):
        assert_refused(path, "there is no such directory", "OWNER/NAME")
    assert not small_hub.requests


def test_no_such_revision(small_hub):
    small_hub.publish("owner/model", {"config.json": b"{}"}, "main")
    assert_refused("hf://owner/model@v9", "has no revision 'v9'")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model(status, small_hub, checkpoint):
    small_hub.publish("owner/model", checkpoint[1], "main")
    small_hub.gated["owner/model"] = status
    assert_refused("owner/model", "gated", "owner/model", "hf auth login")
    assert not any(x == "GET" and "/resolve/" in path for x, path in small_hub.requests)


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (500, {}, "status 500; try again later"),
        (401, {"X-Error-Code": "RepoNotFound"}, "no such model"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "your token"),
    ],
)
def test_a_hub_that_refuses(status, headers, words, small_hub):
    small_hub.broken = status, headers
    assert_refused("owner/model", words)


def test_no_network(small_hub):
    small_hub.close()
    assert_refused("hf://owner/model", "127.0.0.1", "ConnectError", "check the network")
    assert_refused("owner/model", "there is no such directory, and", "check the network")


def test_credentials_of_the_endpoint_are_not_shown(small_hub, monkeypatch):
    endpoint = small_hub.url.replace("http://", f"http://user:{TOKEN}@")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert_refused("owner/model", "127.0.0.1")


def test_offline(small_hub, checkpoint, monkeypatch):
    small_hub.publish("owner/model", checkpoint[1], "main")
    folder = local_checkpoint("owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub._snapshot.cache_clear()
    small_hub.requests.clear()
    assert local_checkpoint("owner/model") == folder
    aesthetic_jax.load_pretrained("owner/model")
    assert_refused("owner/other", "HF_HUB_OFFLINE", "HF_HUB_CACHE")
    assert_refused("hf://owner/model@v9", "HF_HUB_OFFLINE")
    assert not small_hub.requests


def test_an_incomplete_copy_offline(small_hub, checkpoint, monkeypatch):
    small_hub.publish("owner/model", checkpoint[1], "main")
    folder = local_checkpoint("owner/model")
    os.unlink(f"{folder}/model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub._snapshot.cache_clear()
    assert_refused("owner/model", "no complete copy")


def test_an_unreachable_hub_leaves_the_cache(small_hub, checkpoint):
    small_hub.publish("owner/model", checkpoint[1], "main")
    folder = local_checkpoint("owner/model")
    hub._snapshot.cache_clear()
    small_hub.close()
    assert local_checkpoint("owner/model") == folder


@pytest.mark.parametrize(
    "name",
    [
        "hf://owner",
        "hf://",
        "hf:///model",
        "hf://owner/",
        "hf://owner/model/file",
        "hf://../model",
        "hf://owner/..",
        "hf://owner/../../model",
        "hf://owner/model@",
        "hf://owner/model@../../../tmp/x",
        "hf://owner/model@refs/../../x",
        "hf://owner/model@/etc/passwd",
        "hf://owner/model@a b",
        "hf://datasets/owner/model",
        "hf://owner\\model",
        "hf://owner/model?x=1",
    ],
)
def test_illegal_names_never_reach_the_hub(name, small_hub, tmp_path):
    assert parse_hub_name(name) is None
    assert_refused(name, "OWNER/NAME")
    assert not small_hub.requests
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["owner/a--b", "owner/model.git", "owner/model-", "x/" + "y" * 99])
def test_names_that_the_hub_does_not_allow(name, small_hub):
    assert_refused(name, "there is no such directory, and", "correct the name")
    assert not small_hub.requests


def test_a_file_name_that_leads_out_of_the_cache(small_hub, tmp_path):
    files = {"../../../../evil.json": b"{}", "config.json": b"{}"}
    small_hub.publish("owner/model", files, "main")
    folder = local_checkpoint("owner/model")
    assert os.listdir(folder) == ["config.json"]
    assert not list(tmp_path.rglob("evil.json"))


def test_a_full_disk_is_not_blamed_on_the_hub(small_hub, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", "/cache/blobs/1")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match="No space left"):
        local_checkpoint("owner/model")


@pytest.mark.slow
def test_convert_takes_a_name_of_the_hub(small_hub, checkpoint, tmp_path):
    """As a command of its own: online, from the cache, and with names that end in one line."""
    small_hub.publish("owner/model", checkpoint[1], "main")
    environment = os.environ | {
        "HF_ENDPOINT": small_hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "JAX_PLATFORMS": "cpu",
    }

    def convert(name, run, **more):
        words = [sys.executable, "-m", "aesthetic_jax", "convert", f"--from_hf={name}"]
        return subprocess.run(
            [*words, f"--to={tmp_path / run}"],
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    first = convert("owner/model", "first")
    assert first.returncode == 0, first.stderr
    assert f"Bearer {TOKEN}" in small_hub.tokens
    small_hub.requests.clear()
    second = convert("hf://owner/model", "second", HF_HUB_OFFLINE="1")
    assert second.returncode == 0, second.stderr
    assert not small_hub.requests
    small_hub.publish("owner/gated", checkpoint[1], "main")
    small_hub.gated["owner/gated"] = 403
    for result, words in (
        (convert("owner/none", "third"), "there is no such directory, and"),
        (convert("owner/none", "third", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE"),
        (convert("owner/gated", "third"), "the model is gated"),
    ):
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1, result.stderr
        assert "\r" not in result.stderr
        assert words in result.stderr
    assert not (tmp_path / "third").exists()
    assert TOKEN not in first.stdout + first.stderr
