"""Damaged checkpoints are detected, skipped and never restored."""

import hashlib
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from aesthetic_jax.checkpoints import runs
from aesthetic_jax.checkpoints.integrity import find_damage
from aesthetic_jax.errors import UserError

# Orbax keeps times in these; nothing is restored from them.
TIMES = ("_CHECKPOINT_METADATA", "commit_success.txt")


def content(step):
    parameters = {"a": jnp.arange(300.0) + step, "b": {"c": jnp.full((5, 7), step, jnp.bfloat16)}}
    return (
        parameters,
        {"m": jnp.ones(300) * step},
        (np.arange(40) + step, np.full(9, step, np.int32)),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.json").write_text('{"rope_theta": 10000}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("[1, 2, 3]")
    with runs.open_manager(str(folder), 2) as manager:
        for step in (1, 2):
            runs.save(manager, step, *content(step))
    return folder


def files(folder):
    return sorted(x for x in folder.rglob("*") if x.is_file())


def same(restored, step):
    expected, found = (jax.tree.leaves(x) for x in (content(step), restored))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def damage(file, kind, rng):
    data = bytearray(file.read_bytes())
    if kind == "emptied":
        data = b""
    elif kind == "truncated":
        data = data[: rng.integers(len(data))]
    elif kind == "flipped":
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)


def test_a_checkpoint_carries_checksums_of_all_it_needs(run):
    checkpoint = run / "checkpoints" / "2"
    lines = (checkpoint / "checksums.txt").read_text().splitlines()
    names = {line.split("  ")[1] for line in lines[:-1]}
    present = {str(x.relative_to(checkpoint)) for x in files(checkpoint)}
    shared = {"../../model.json", "../../tokenizer/vocab.json"}
    assert names == (present - {"checksums.txt", *TIMES}) | shared
    assert find_damage(epath.Path(checkpoint)) is None
    for line in lines[:-1]:
        digest, name = line.split("  ")
        assert digest == hashlib.blake2b((checkpoint / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("seed", range(20))
def test_damage_at_a_random_place_is_passed_over(run, tmp_path, seed, caplog):
    """One file of checkpoint 2 is damaged: checkpoint 1 is restored, with a warning."""
    rng = np.random.default_rng(seed)
    copy = shutil.copytree(run, tmp_path / "run")
    choice = [x for x in files(copy / "checkpoints" / "2") if x.stat().st_size]
    file = choice[rng.integers(len(choice))]
    damage(file, ("emptied", "truncated", "flipped")[seed % 3], rng)
    caplog.set_level(logging.WARNING)
    step = runs.newest_step(str(copy))
    if file.parent.name == "2" and file.name in TIMES:
        assert step == 2
    else:
        assert step == 1
        assert str(copy / "checkpoints" / "2") in caplog.text
    runs.set_aside_newer(str(copy), step)
    with runs.open_manager(str(copy), 2) as manager:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), content(0)[:2])
        same(runs.restore(manager, step, *shapes, content(0)[2]), step)
        if step == 1:  # the run reaches step 2 again
            runs.save(manager, 2, *content(2))
    assert runs.newest_step(str(copy)) == 2


@pytest.mark.parametrize("name", TIMES)
def test_damaged_orbax_times_do_not_matter(run, tmp_path, name):
    rng = np.random.default_rng(0)
    for kind in ("emptied", "truncated", "flipped"):
        copy = shutil.copytree(run, tmp_path / kind)
        damage(copy / "checkpoints" / "2" / name, kind, rng)
        with runs.open_manager(str(copy), 2) as manager:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), content(0)[:2])
            same(runs.restore(manager, 2, *shapes, content(0)[2]), 2)


@pytest.mark.parametrize("name", ["checksums.txt", "parameters", "progress"])
def test_what_is_missing_counts_as_damage(run, tmp_path, name):
    copy = shutil.copytree(run, tmp_path / "run")
    target = copy / "checkpoints" / "2" / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert runs.newest_step(str(copy)) == 1
    # A model alone needs the parameters only.
    assert runs.newest_step(str(copy), "parameters") == (2 if name == "progress" else 1)


def test_no_whole_checkpoint(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    for step in (1, 2):
        (copy / "checkpoints" / str(step) / "checksums.txt").write_text("")
    assert runs.newest_step(str(copy)) is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        runs.locate(str(copy))
    with pytest.raises(UserError, match=r"checksums\.txt is damaged; name another"):
        runs.locate(str(copy / "checkpoints" / "2"))
    runs.set_aside_newer(str(copy), None)
    assert runs.saved_steps(str(copy)) == []
    assert (copy / "damaged" / "2" / "parameters").exists()


@pytest.mark.parametrize("name", ["model.json", "tokenizer/vocab.json"])
def test_a_changed_file_of_the_run_is_named(run, tmp_path, name):
    """All checkpoints share it, so an older one can't help."""
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy / name, "flipped", np.random.default_rng(1))
    with pytest.raises(UserError, match=f"{name}: is damaged"):
        runs.newest_step(str(copy))


def test_a_checkpoint_of_other_shapes_is_refused(run):
    with runs.open_manager(str(run), 2) as manager:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), content(0)[:2])
        with pytest.raises(UserError, match="start another run"):
            runs.restore(manager, 2, *shapes, (np.arange(41), np.zeros(9, np.int32)))


def test_what_a_kill_left_unfinished_is_removed(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / "3.orbax-checkpoint-tmp")
    assert runs.newest_step(str(copy)) == 2
    with runs.open_manager(str(copy), 2) as manager:
        runs.save(manager, 3, *content(3))
    assert sorted(x.name for x in (copy / "checkpoints").iterdir()) == ["2", "3"]
