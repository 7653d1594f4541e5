"""Help, exit codes and errors that all commands share, mostly as a person sees them."""

import errno
import importlib
import logging
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

from aesthetic_jax import report
from aesthetic_jax.__main__ import COMMANDS, GROUPS, main
from aesthetic_jax.command_line import parse_flags
from aesthetic_jax.failures import describe_failure, watch_saves

ROOT = pathlib.Path(__file__).parents[1]
SFT = f"--config={ROOT}/configs/quickstart.py:sft"
GRPO = f"--config={ROOT}/configs/quickstart.py:hcm_grpo"
SMALL = ("--config.batch_size=4", "--config.log_every=1", "--config.max_completion_length=8")


@pytest.fixture(scope="module")
def source(command, tmp_path_factory):
    """A folder with a manifest and its images."""
    folder = tmp_path_factory.mktemp("source") / "made"
    size = ("--num=30", "--image_size=56", "--workers=1", "--splits=0.5,0.1,0.4")
    result = command("synthesize", f"--out={folder}", *size)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def run(command, source, tmp_path_factory):
    """A run directory."""
    folder = tmp_path_factory.mktemp("run")
    data = f"--config.data.manifest={source}/manifest.jsonl"
    steps = "--config.num_steps=1"
    result = command("train", SFT, data, *SMALL, steps, f"--workdir={folder}")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_help_groups_the_commands(command):
    lines = command("--help").stdout.splitlines()
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    for group, commands in GROUPS.items():
        block = lines[lines.index(group) + 1 :][: len(commands)]
        assert block == [f"  {name:<10}  {summary}" for name, summary in commands.items()]
    assert command().stdout.splitlines() == lines
    assert all(len(line) <= 100 for line in lines)


def test_help_of_a_command_shows_its_docstring_and_flags():
    code = """
import sys
from aesthetic_jax.__main__ import COMMANDS, main
for name in COMMANDS:
    print("=" * 9, name)
    main([name, "--help"])
assert not {"jax", "numpy", "orbax"} & sys.modules.keys()  # so that help is fast
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    helps = dict(part.split("\n", 1) for part in shown.stdout.split("========= ")[1:])
    assert list(helps) == COMMANDS
    for name, text in helps.items():
        module = importlib.import_module(f"aesthetic_jax.{name}")
        assert text.startswith((module.__doc__ or "").strip())
        assert all(f"{flag}\n" in text for flag in module.FLAGS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_have_flags_that_exist(name):
    module = importlib.import_module(f"aesthetic_jax.{name}")
    text = (module.__doc__ or "").replace("\\\n", " ")
    examples = re.findall(rf"^ *aesthetic-jax {name} (--.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        for flag in re.findall(r"--(\w+)", example):
            assert flag in module.FLAGS, example


CONFIGS = {
    "not_closed": ("x = (\n", ["not_closed.py, line 1", "never closed"]),
    "raises": ("x = 1\n\ny = x / 0\n", ["raises.py, line 3", "ZeroDivisionError"]),
    "imports": ("import nowhere_to_be_found\n", ["imports.py, line 1", "nowhere_to_be_found"]),
    "opens": ("open('missing.txt')\n", ["opens.py, line 1", "missing.txt"]),
    "nothing": ("x = 1\n", ["nothing.py", "get_config"]),
    "get_raises": (
        "def get_config():\n    raise ValueError('first\\nsecond')\n",
        ["get_raises.py, line 2", "first second"],
    ),
    "returns_none": ("def get_config():\n    pass\n", ["returns_none.py", "ConfigDict"]),
    "takes_one": ("def get_config(method):\n    pass\n", ["takes_one.py", "'method'", ":argument"]),
    "nul": ("a\0b", ["nul.py", "no Python"]),
    "latin": ("x = 'caf\xe9'\n".encode("latin-1"), ["latin.py", "no Python"]),
    "garbage": (bytes(range(128, 256)) * 9, ["garbage.py", "no Python"]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_that_makes_no_config(name, command, refuses, tmp_path):
    content, expected = CONFIGS[name]
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / f"{name}.py").write_bytes(content)
    words = (f"--config={tmp_path}/{name}.py", "--config.num_steps=1", f"--workdir={tmp_path}/run")
    refuses(command("train", *words), str(tmp_path), *expected)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("nowhere.py", ["nowhere.py", "No such file", "configs/"]),
        ("", ["--config", "configs/"]),
        (str(ROOT / "configs"), ["configs", "Is a directory"]),
        (f"{ROOT}/README.md/x.py", ["x.py", "Not a directory"]),
        (f"{ROOT}/README.md", ["README.md, line ", "no Python"]),
        (f"{ROOT}/configs/quickstart.py:ppo", ["ppo", "hcm_grpo"]),
    ],
)
@pytest.mark.parametrize("fields", [(), ("--config.num_steps=1",)])
def test_a_config_flag_that_names_no_config_file(config, expected, fields, command, refuses):
    refuses(command("train", f"--config={config}", *fields, "--workdir=x"), *expected)


def test_other_flags_with_a_config_file(command, refuses):
    refuses(command("sweep", "--sweep=nowhere.py"), "--sweep", "nowhere.py", "configs/sweeps")
    for field in ("nothing", "data.nothing", "seed.nothing"):
        refuses(command("train", SFT, f"--config.{field}=1", "--workdir=x"), "nothing")


@pytest.fixture(
    params=[
        "below_a_file",
        pytest.param("is_a_file", marks=pytest.mark.slow),
        pytest.param("read_only", marks=pytest.mark.slow),
    ]
)
def bad_folder(request, tmp_path):
    """A folder that nobody, not even root, can write to."""
    (tmp_path / "file").write_text("")
    folders = {"is_a_file": "file", "below_a_file": "file/folder"}
    return str(tmp_path / folders[request.param]) if request.param in folders else "/proc/nowhere"


def test_a_folder_that_cannot_be_written(command, refuses, source, bad_folder):
    manifest = f"--manifest={source}/manifest.jsonl"
    sweep = (f"--sweep={ROOT}/configs/sweeps/quickstart.py", "--data_dir=unread")
    commands = [
        ("synthesize", "--num=1", "--image_size=56", "--workers=1", f"--out={bad_folder}"),
        ("build", manifest, "--workers=1", f"--out={bad_folder}"),
        ("inspect", manifest, "--workers=1", f"--out={bad_folder}"),
        ("sweep", *sweep, "--init_from=unread", f"--out={bad_folder}"),
        ("report", "--methods=sft", f"--results={bad_folder}"),
    ]
    for words in commands:
        refuses(command(*words), str(pathlib.Path(bad_folder).parent))


@pytest.mark.slow
def test_a_folder_that_a_model_cannot_write(command, refuses, source, run, tmp_path):
    (tmp_path / "file").write_text("")
    bad_folder = f"{tmp_path}/file/folder"
    data = (f"--config.data.manifest={source}/manifest.jsonl", *SMALL)
    commands = [
        ("train", SFT, *data, "--config.num_steps=1", f"--workdir={bad_folder}"),
        ("evaluate", SFT, *data, f"--checkpoint={run}", "--limit=1", f"--out={bad_folder}"),
        ("mine", GRPO, *data, f"--checkpoint={run}", f"--out={bad_folder}"),
        ("convert", f"--from={run}", f"--to_hf={bad_folder}"),
    ]
    for words in commands:
        refuses(command(*words), f"{tmp_path}/file/", "Not a directory")


@pytest.fixture
def on_small_disk(tmp_path):
    """Runs a command with a small separate disk at `tmp_path/disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def execute(size, *words):
        # The disk goes away with the namespace of the process.
        script = f'mount -t tmpfs -o size={size} tmpfs {disk} && exec "$@"'
        prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
        return subprocess.run([*prefix, *words], capture_output=True, text=True, check=False)

    if shutil.which("unshare") is None or execute("64k", "true").returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    return lambda size, *words: execute(size, sys.executable, "-m", "aesthetic_jax", *words)


def test_a_full_disk(on_small_disk, refuses, tmp_path):
    out = f"{tmp_path}/disk/x"
    words = ("synthesize", "--num=30", "--image_size=56", "--workers=2", f"--out={out}")
    refuses(on_small_disk("64k", *words), out, "No space left", "free some space")


@pytest.mark.slow
def test_a_disk_that_an_export_fills(on_small_disk, refuses, run, tmp_path):
    out = f"{tmp_path}/disk/x"
    words = ("convert", f"--from={run}", f"--to_hf={out}")
    refuses(on_small_disk("1m", *words), out, "No space left", "free some space")


@pytest.mark.slow
def test_a_disk_that_checkpoints_fill(on_small_disk, refuses, source, tmp_path):
    workdir = f"{tmp_path}/disk/run"
    data = f"--config.data.manifest={source}/manifest.jsonl"
    steps = ("--config.num_steps=4", "--config.checkpoint_every=1", "--config.keep_checkpoints=4")
    words = ("train", SFT, data, *SMALL, *steps, f"--workdir={workdir}")
    result = on_small_disk("40m", *words)
    refuses(result, f"{workdir}/", "No space left", f"{workdir}/checkpoints/2")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
        OSError("without a code"),
        PermissionError(errno.EACCES, "Permission denied"),
        PermissionError(errno.EACCES, "Permission denied", "/usr/lib/ours.py"),
        FileNotFoundError(errno.ENOENT, "No such file", "/results_of_others/file"),
        OSError(errno.EBADF, "Bad file descriptor", "/results/file"),
    ],
)
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr(report, "main", fail)
    with pytest.raises(type(error)) as caught:
        main(["report", "--results=/results", "--methods=sft,grpo"])
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "", "/results/sft/x"), "/results/sft/x: Permission denied;"),
        (NotADirectoryError(errno.ENOTDIR, "", "/results"), "/results: Not a directory;"),
        (PermissionError(errno.EPERM, "", "/"), "/: Operation not permitted;"),
        (OSError(errno.EROFS, "", "/.results.partial-1f"), "/.results.partial-1f: Read-only"),
        (OSError(errno.ENOSPC, ""), "/results: No space left on device;"),
        (OSError(errno.ENOSPC, "", "/disk/x"), "/disk/x: No space left on device;"),
        (Exception("I/O error: No space (os error 28)"), "/results: No space left on device;"),
        (
            ValueError("Failed writing: \"/results/d/x\": No space [os_error_code='28']"),
            "/results/d/x: No space left on device;",
        ),
        (
            ValueError("Failed opening: \"/results/d/x\": [os_error_code='13']"),
            "/results/d/x: Permission denied;",
        ),
    ],
)
def test_what_the_user_can_mend(error, expected):
    parse_flags(report.FLAGS, "report", ["--results=/results", "--methods=sft"])
    message = describe_failure(error, report.FLAGS)
    assert message is not None
    assert message.startswith(expected)
    assert "\n" not in message


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_save_ends_a_process_that_has_peers(processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])
    error, ended = ValueError("disk"), []
    watch_saves(ended.append)
    for thread in ("MainThread", "async_save"):  # Orbax's name for the thread that saves
        record = logging.LogRecord("absl", logging.ERROR, "x.py", 1, "failed", (), None)
        record.threadName, record.exc_info = thread, (ValueError, error, None)
        logging.getLogger("absl").handle(record)
    assert ended == ([error] if processes > 1 else [])
