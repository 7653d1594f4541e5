"""scripts/parity.py: the tiny table passes, every planted error is noticed where it must be, bad flags end in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # a script's own folder is where it finds its helpers

import parity  # noqa: E402
import parity_cases  # noqa: E402
import parity_errors  # noqa: E402
import parity_table  # noqa: E402


def run_script(*words):
    words = [sys.executable, str(SCRIPTS / "parity.py"), *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The script run once, and the work folder it leaves; what PyTorch computed there serves every planted error."""
    for name in ("torch", "trl"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("parity")
    process = run_script("--size=tiny", f"--out={folder / 'out'}", f"--work={folder / 'work'}")
    return process, folder / "out", parity_cases.open_work(str(folder / "work"), "tiny")


@pytest.mark.parity
def test_every_row_passes(tiny):
    process, out, work = tiny
    assert process.returncode == 0, process.stdout + process.stderr
    content = json.loads((out / "parity.json").read_text())
    assert {row["verdict"] for row in content["rows"]} == {"pass"}
    assert len(content["rows"]) == sum(row.section in work.sections for row in parity_table.make_rows(work))
    table = (out / "parity.md").read_text()
    assert table in process.stdout
    assert table.count("| pass") == len(content["rows"])


@pytest.mark.parity
@pytest.mark.parametrize("name", parity_errors.PLANTED)
def test_planted_error_is_noticed(tiny, name):
    _, _, work = tiny
    error = parity_errors.PLANTED[name]
    sections = (error.section,)
    parity.run_side("jax", work, sections, name)
    if "export" in sections:
        parity.run_side("reopen", work, sections)
    rows = [row for row in parity_table.compare(work, sections) if re.search(error.quantity, row.quantity)]
    assert rows
    assert {row.verdict for row in rows} == {"FAIL"}


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
    assert [line.split()[0] for line in process.stdout.splitlines()] == list(parity_errors.PLANTED)


@pytest.mark.parametrize(
    ("words", "named"),
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
def test_bad_flags_end_in_one_line(words, named, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    process = run_script(*(word.format(folder=tmp_path) for word in words))
    assert process.returncode == 2, process.stdout + process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert named in process.stderr
    assert not process.stdout
