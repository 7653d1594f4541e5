"""scripts/parity.py: tiny passes, the table notices planted errors, bad flags end in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as when a script runs

from paritylib import errors, rows, sides  # noqa: E402
from paritylib.work import open_work  # noqa: E402


def run_script(*words):
    words = [sys.executable, str(SCRIPTS / "parity.py"), *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """One run of the script and its work folder; the planted errors use PyTorch's arrays there."""
    for name in ("torch", "trl"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("parity")
    process = run_script("--size=tiny", f"--out={folder / 'out'}", f"--work={folder / 'work'}")
    return process, folder / "out", open_work(str(folder / "work"), "tiny")


@pytest.mark.parity
def test_every_row_passes(tiny):
    process, out, work = tiny
    assert process.returncode == 0, process.stdout + process.stderr
    content = json.loads((out / "parity.json").read_text())
    assert {row["verdict"] for row in content["rows"]} == {"pass"}
    assert len(content["rows"]) == sum(row.section in work.sections for row in rows.make_rows(work))
    table = (out / "parity.md").read_text()
    assert table in process.stdout
    assert table.count("| pass") == len(content["rows"])


@pytest.mark.parity
@pytest.mark.parametrize("name", errors.PLANTED)
def test_planted_error_is_noticed(tiny, name):
    _, _, work = tiny
    error = errors.PLANTED[name]
    sections = (error.section,)
    sides.run_side("jax", work, sections, name)
    if "export" in sections:
        sides.run_side("reopen", work, sections)
    verdicts = [
        result.verdict
        for result in rows.compare(work, sections)
        if re.search(error.quantity, result.quantity)
    ]
    assert verdicts
    assert set(verdicts) == {"FAIL"}


@pytest.mark.parity
def test_a_failing_row_gives_exit_code_1(tiny, tmp_path):
    _, _, work = tiny
    words = "--size=tiny", "--dtype=bfloat16", "--inject=temperature_ignored"
    process = run_script(*words, f"--out={tmp_path}", f"--work={work.folder}")
    assert process.returncode == 1, process.stderr
    assert "| FAIL" in (tmp_path / "parity.md").read_text()


def test_every_planted_error_is_listed():
    process = run_script("--inject=list")
    assert process.returncode == 0
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(errors.PLANTED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--out is missing"),
        (("--out={folder}", "--size=medium"), "--size: medium is neither tiny nor 2b"),
        (("--out={folder}", "--size={folder}"), "model_type 'internvl_chat'"),
        (("--out={folder}", "--dtype=float64"), "--dtype: no 'float64'"),
        (("--out={folder}", "--inject=typo"), "--inject: no error 'typo'"),
        (("--out={folder}/config.json",), "is a file"),
        (("--out={folder}", "--sizes=tiny"), "sizes"),
        (("tiny",), "unexpected argument 'tiny'"),
    ],
)
def test_bad_flags_end_in_one_line(words, message, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    process = run_script(*(word.format(folder=tmp_path) for word in words))
    assert process.returncode == 2, process.stdout + process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert message in process.stderr
    assert not process.stdout
