"""Limits that keep the repository readable: sizes, imports, paths, README and lock files."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import tomllib

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aesthetic_jax.rl.advantages import group_advantages

ROOT = pathlib.Path(__file__).parents[1]
LOCKS = ("requirements.lock", "scripts/requirements-parity.lock", "tpu/requirements-tpu.lock")
ALL = {"errors", "files"}  # any package may import these modules
IMPORTS = {  # package -> the packages that it may import
    "models": set(),
    "data": {"models"},
    "rl": {"models", "data"},
    "checkpoints": {"models", "data"},
    "training": {"models", "data", "rl", "checkpoints"},
    "aot": {"models", "data", "rl", "checkpoints", "training"},
}


@functools.cache
def tracked():
    """Every file that git tracks, or would track after `git add`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in names.split("\0") if name]
    return [path for path in paths if path.is_file()]


def name(path):
    return path.relative_to(ROOT).as_posix()


def sources():
    """Every Python file outside tests/, with its syntax tree."""
    paths = [path for path in tracked() if path.suffix == ".py"]
    return [
        (path, ast.parse(path.read_text())) for path in paths if not name(path).startswith("tests/")
    ]


def functions():
    """Every function outside tests/, with the file's name."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [
        (name(path), node)
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    ]


def words_of(path):
    return (ROOT / path).read_text()


def lock_entries(path):
    """The lines of a lock file's entries, continuation lines joined."""
    text = words_of(path).replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_no_file_has_more_than_400_lines():
    sizes = {name(path): len(path.read_text().splitlines()) for path, _ in sources()}
    assert {file: size for file, size in sizes.items() if size > 400} == {}


def test_no_line_has_more_than_100_characters():
    paths = [
        path for path in tracked() if path.suffix in (".py", ".sh") or path.name == "Dockerfile"
    ]
    long = [
        f"{name(path)}:{number}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > 100
    ]
    assert long == []


def test_no_function_has_more_than_60_lines():
    def length(node):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        return lines

    sizes = {f"{file}:{node.name}": length(node) for file, node in functions()}
    sizes.pop("aesthetic_jax/rl/losses.py:policy_loss")  # one formula
    assert {function: size for function, size in sizes.items() if size > 60} == {}


def test_no_function_has_more_than_8_parameters():
    def count(node):
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([x for x in parameters if x.arg not in ("self", "cls")])

    counts = {f"{file}:{node.name}": count(node) for file, node in functions()}
    counts.pop("aesthetic_jax/rl/losses.py:policy_loss")  # its signature is a contract
    assert {function: number for function, number in counts.items() if number > 8} == {}


def imported(tree):
    """The modules of aesthetic_jax that a file imports anywhere, as tuples of names."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [module.split(".") for module in modules]
    return [words[1:] for words in parts if words[0] == "aesthetic_jax" and len(words) > 1]


def test_imports_run_one_way():
    wrong = []
    for path, tree in sources():
        folders = name(path).split("/")[:-1]
        if len(folders) < 2 or folders[0] != "aesthetic_jax":
            continue  # commands and scripts may import everything
        package = folders[1]
        allowed = IMPORTS[package] | ALL | {package}
        wrong += [
            f"{name(path)} imports {'.'.join(words)}"
            for words in imported(tree)
            if words[0] not in allowed
        ]
    assert wrong == []


def test_every_command_shows_an_example():
    commands = [
        (path.stem, ast.get_docstring(tree) or "")
        for path, tree in sources()
        if name(path.parent) == "aesthetic_jax" and re.search(r"(?m)^FLAGS\b", path.read_text())
    ]
    assert len(commands) >= 11
    example = r"(?m)^ *aesthetic-jax {} --"
    assert [stem for stem, text in commands if not re.search(example.format(stem), text)] == []


def test_no_machine_paths_and_no_registry_hosts():
    folders = "|".join(("work", "root", "tmp"))
    hosts = ("py" + "pi.org", "python" + "hosted", "npm" + "js.", "download.py" + "torch")
    pattern = re.compile(rf"(?<![\w.}}\])])/({folders})/|" + "|".join(map(re.escape, hosts)))
    found = [
        f"{name(path)}:{number}"
        for path in tracked()
        if path.suffix not in (".png", ".npz")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert found == []


def test_readme_is_short_and_starts_with_a_command():
    text = words_of("README.md")
    lines = text.splitlines()
    assert len(lines) <= 150
    assert len(text.split()) <= 1100
    assert re.search(r"(?m)pip install|^scripts/\w+\.sh", "\n".join(lines[:45]))


def test_the_top_level_is_complete():
    expected = {"LICENSE", "CITATION.cff", "README.md", "pyproject.toml", "requirements.lock"}
    folders = {"aesthetic_jax", "configs", "scripts", "tests", "tpu"}
    top = {name(path).split("/")[0] for path in tracked()}
    assert {entry for entry in top if not entry.startswith(".")} == expected | folders


@pytest.mark.parametrize("lock", LOCKS)
def test_every_lock_entry_is_pinned_and_hashed(lock):
    entries = lock_entries(lock)
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[\w.]+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+$", entry)


def test_the_locks_share_no_package():
    names = [entry.split("==")[0] for lock in LOCKS for entry in lock_entries(lock)]
    assert len(names) == len(set(names))


def test_the_lock_fits_pyproject_and_this_environment():
    project = tomllib.loads(words_of("pyproject.toml"))["project"]
    pins = dict(
        re.match(r"([a-z0-9-]+)==([\w.]+)", entry).groups()
        for entry in lock_entries("requirements.lock")
    )
    for line in project["dependencies"] + project["optional-dependencies"]["test"]:
        requirement = Requirement(line)
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier
        assert importlib.metadata.version(requirement.name) == pin


@pytest.mark.parametrize("script", ["scripts/setup.sh", "tpu/worker.sh", "tpu/Dockerfile"])
def test_what_installs_hands_the_lock_itself(script):
    text = words_of(script)
    assert re.search(r"--require-hashes[\s\\]+--requirement=requirements\.lock", text)
    assert re.search(r"(?m)pip install .*--no-deps (--editable=)?\.$", text)


def test_tests_enforce_shape_annotations():
    with pytest.raises(TypeCheckError):
        group_advantages(jnp.zeros((2, 3, 4)))
