import importlib.util
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS, Sample, write_manifest
from aesthetic_jax.data.records import data_folder, open_records
from aesthetic_jax.data.scenes.facts_file import find_scenes


def build(manifest, out, *flags):
    command = [
        sys.executable,
        "-m",
        "aesthetic_jax",
        "build",
        f"--manifest={manifest}",
        f"--out={out}",
        *flags,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refused(run, *said):
    """The run ended with one line of error and exit code 2."""
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("aesthetic-jax: error: ")
    for text in said:
        assert text in run.stderr


def snapshot(folder):
    return {
        path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    for name, pixels in zip("oabcd", images, strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    candidates = tuple(f"{x}.png" for x in "abcd")
    splits = ("train", "train", "test", "validation")
    samples = [
        Sample(
            f"s{number}",
            splits[number % 4],
            DIMENSIONS[number % 4],
            "o.png",
            candidates,
            ("B",),
            "Because.",
        )
        for number in range(20)
    ]
    write_manifest(samples, str(folder / "manifest.jsonl"))
    return folder


def test_a_manifest_becomes_a_data_set_once(source, tmp_path):
    out = tmp_path / "deep" / "out"
    first = build(source / "manifest.jsonl", out, "--workers=2")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"{out}/screening/1.0.0: train 10, validation 5, test 5\n"
    assert [path.name for path in out.iterdir()] == ["screening"]
    assert [path.name for path in (out / "screening").iterdir()] == ["1.0.0"]
    records = open_records(data_dir=str(out))
    assert records.ids() == [f"s{number}" for number in range(20) if number % 4 < 2]
    assert records[0].images[0] == (source / "o.png").read_bytes()

    before = snapshot(out)
    again = build(source / "manifest.jsonl", out, "--workers=1")
    assert (again.returncode, again.stderr) == (0, "")
    assert (
        again.stdout
        == f"{out}/screening/1.0.0: holds this data set already; train 10, validation 5, test 5\n"
    )
    assert snapshot(out) == before


IMAGE = {"kind": "jar", "body": "red", "label": "blue", "cap": None, "light": "left", "flaws": []}


def write_scenes(source):
    """A scenes.jsonl beside the manifest."""
    images = dict.fromkeys(("original", *"ABCD"), IMAGE)
    rows = [json.dumps({"id": f"s{number}", "images": images}) for number in range(20)]
    (source / "scenes.jsonl").write_text("\n".join(rows) + "\n")


def test_scenes_are_copied_beside_the_records(source, tmp_path):
    path, out, plain = source / "manifest.jsonl", tmp_path / "out", tmp_path / "plain"
    assert build(path, plain, "--workers=1").returncode == 0
    write_scenes(source)
    run = build(path, out, "--workers=1")
    assert (run.returncode, run.stderr) == (0, "")
    with_scenes, without = out / "screening" / "1.0.0", plain / "screening" / "1.0.0"
    copy = with_scenes / "scenes.jsonl"
    assert copy.read_bytes() == (source / "scenes.jsonl").read_bytes()
    names = {file.name for file in without.iterdir()}
    assert {file.name for file in with_scenes.iterdir()} == names | {"scenes.jsonl"}
    for name in names - {"checksums.txt", "dataset_info.json"}:
        assert (with_scenes / name).read_bytes() == (without / name).read_bytes()
    assert data_folder(data_dir=str(out)) == data_folder(data_dir=str(with_scenes))
    assert find_scenes(data_folder(data_dir=str(out)), ["s7"])
    assert find_scenes(data_folder(data_dir=str(plain)), ["s7"]) is None
    assert find_scenes(data_folder(str(path)), ["s7"])

    assert "holds this data set already" in build(path, out, "--workers=1").stdout
    refused(build(path, plain, "--workers=1"), f"{without}/scenes.jsonl: is missing, or not the")
    copy.write_text(copy.read_text().replace("red", "blue"))
    refused(build(path, out, "--workers=1"), f"{copy}: is damaged or missing", "build again")


def test_malformed_scenes_are_refused_before_anything_is_written(source, tmp_path):
    write_scenes(source)
    file = source / "scenes.jsonl"
    file.write_text(file.read_text().replace("left", "top"))
    run = build(source / "manifest.jsonl", tmp_path / "out", "--workers=1")
    refused(run, f"{file}: line 1: image 'original': field 'light' must be left or right")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["pixels", "manifest"])
def test_a_data_set_of_other_content_is_kept(source, tmp_path, what):
    out = tmp_path / "out"
    assert build(source / "manifest.jsonl", out, "--workers=1").returncode == 0
    before = snapshot(out)
    if what == "pixels":  # a file of the same size and name
        data = (source / "d.png").read_bytes()
        Image.open(source / "d.png").transpose(Image.Transpose.ROTATE_180).save(source / "d.png")
        assert data != (source / "d.png").read_bytes()
    else:
        text = (source / "manifest.jsonl").read_text()
        (source / "manifest.jsonl").write_text(text.replace("Because.", "Why not.", 1))
    run = build(source / "manifest.jsonl", out, "--workers=1")
    refused(
        run,
        f"{out}/screening/1.0.0: has a data set with other content;",
        "remove it or choose another --out",
    )
    assert snapshot(out) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_is_named_and_nothing_is_left(source, tmp_path, workers):
    data = (source / "c.png").read_bytes()
    (source / "c.png").write_bytes(data[: len(data) // 2])
    run = build(source / "manifest.jsonl", tmp_path / "out", f"--workers={workers}")
    refused(run, f"{source}/c.png: can't be decoded", "replace the file")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_animation_is_refused_by_name(source, tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(source / "b.png", "GIF", save_all=True, append_images=frames[1:])
    refused(
        build(source / "manifest.jsonl", tmp_path / "out", "--workers=1"),
        f"{source}/b.png: is an animation",
    )


def test_a_failed_build_leaves_other_files_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (source / "c.png").write_bytes(b"no image")
    refused(
        build(source / "manifest.jsonl", out, "--workers=1"),
        "c.png: is not an image of a known format",
    )
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_bad_manifests_are_refused_before_anything_is_written(source, tmp_path):
    path = source / "manifest.jsonl"
    path.write_text(path.read_text() + json.dumps({"id": "x"}) + "\n")
    refused(build(path, tmp_path / "out"), f"{path}: line 21: field 'split' is missing; add it")
    refused(
        build(source / "nothing.jsonl", tmp_path / "out"),
        "nothing.jsonl: there is no such manifest",
    )
    assert not (tmp_path / "out").exists()


def test_flags(source, tmp_path):
    refused(build("", tmp_path / "out"), "--manifest is missing")
    refused(build(source / "manifest.jsonl", tmp_path / "out", "--workers=0"), "workers")
    refused(build(source / "manifest.jsonl", tmp_path / "out", "--shards=2"), "shards")


def test_an_out_that_is_a_file_or_half_a_data_set_is_refused(source, tmp_path):
    out = tmp_path / "out"
    out.write_text("a file")
    refused(build(source / "manifest.jsonl", out, "--workers=1"), f"{out}: can't be written")
    assert out.read_text() == "a file"
    half = tmp_path / "half" / "screening" / "1.0.0"
    half.mkdir(parents=True)
    (half / "x").write_text("")
    refused(
        build(source / "manifest.jsonl", tmp_path / "half"),
        f"{half}: has no complete data set; remove it",
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_build_keeps_the_complete_shards(source, tmp_path, how):
    path, out = source / "manifest.jsonl", tmp_path / "out"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    many = [row | {"id": f"{number}-{row['id']}"} for number in range(1000) for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in many))
    command = [
        sys.executable,
        "-m",
        "aesthetic_jax",
        "build",
        f"--manifest={path}",
        f"--out={out}",
        "--workers=2",
    ]
    # The background jobs of a shell ignore SIGINT, and so would the processes they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("screening/unfinished/*_record.json")):
        assert process.poll() is None, "the build ended before it could be stopped"
        time.sleep(0.002)
    process.send_signal(how)
    out_text, errors = process.communicate()
    assert out_text == ""
    assert how == signal.SIGKILL or errors == ""  # after SIGKILL, Python reports leaked semaphores
    if how == signal.SIGINT:
        assert process.returncode == 130
    assert [folder.name for folder in (out / "screening").iterdir()] == ["unfinished"]
    done = [
        file for file in out.rglob("*.array_record") if file.with_name(f"{file.name}.json").exists()
    ]
    written = {file.name: file.stat().st_mtime_ns for file in done}

    assert build(path, out, "--workers=2").returncode == 0
    assert [folder.name for folder in (out / "screening").iterdir()] == ["1.0.0"]
    assert len(open_records(data_dir=str(out))) == 10000
    times = {file.stat().st_mtime_ns for file in out.rglob("*array_record*")}
    assert written
    assert set(written.values()) <= times


def test_samples_that_can_not_be_decoded_may_be_left_out(source, tmp_path):
    path, out = source / "manifest.jsonl", tmp_path / "out"
    data = (source / "c.png").read_bytes()
    (source / "bad.png").write_bytes(data[: len(data) // 2])
    text = path.read_text().splitlines()
    text[4] = text[4].replace("c.png", "bad.png")
    text[5] = text[5].replace("o.png", "bad.png")
    path.write_text("\n".join(text))
    refused(build(path, out), "bad.png: can't be decoded", "1 more bad sample;", "--max_rejects")
    refused(build(path, out, "--max_rejects=0.05"), "bad.png: can't be decoded")
    run = build(path, out, "--max_rejects=0.1")
    counts = "train 10, validation 5, test 5"
    assert run.stdout == (
        f"{out}/screening/1.0.0: {counts}; 2 of them left out, see rejects.jsonl\n"
    )
    rejects = [
        json.loads(line)
        for line in (out / "screening" / "1.0.0" / "rejects.jsonl").read_text().splitlines()
    ]
    assert [(row["id"], row["split"]) for row in rejects] == [("s4", "train"), ("s5", "train")]
    assert all(row["reason"].startswith(f"{source}/bad.png: can't be decoded") for row in rejects)
    assert open_records(data_dir=str(out)).ids() == [
        f"s{number}" for number in range(20) if number % 4 < 2 and number not in (4, 5)
    ]
    assert "holds this data set already" in build(path, out).stdout


def test_a_damaged_shard_is_found_when_it_is_built_again(source, tmp_path):
    out = tmp_path / "out"
    assert build(source / "manifest.jsonl", out).returncode == 0
    folder = out / "screening" / "1.0.0"
    check = subprocess.run(
        ["b2sum", "--check", "checksums.txt"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (check.returncode, check.stdout.count(": OK")) == (0, 3)
    (shard,) = folder.glob("*-test.*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused(build(source / "manifest.jsonl", out), f"{shard}: is damaged", "build again")


def test_beam_writes_the_same_data_set(source, tmp_path):
    pytest.importorskip("apache_beam")
    path, out = source / "manifest.jsonl", tmp_path / "beam"
    options = "--beam_options=direct_running_mode=multi_processing,direct_num_workers=2"
    run = build(path, out, "--beam_runner=DirectRunner", options)
    assert run.returncode == 0, run.stderr
    assert build(path, tmp_path / "here").returncode == 0
    for file in (out / "screening" / "1.0.0").glob("*array_record*"):
        assert (
            file.read_bytes()
            == (tmp_path / "here" / "screening" / "1.0.0" / file.name).read_bytes()
        )


def test_a_missing_beam_gets_one_line(source, tmp_path):
    if importlib.util.find_spec("apache_beam") is None:
        refused(
            build(source / "manifest.jsonl", tmp_path / "out", "--beam_runner=DirectRunner"),
            "pip install",
        )
