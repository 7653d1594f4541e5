"""Mining with a sampler whose completions are known; the real one mines in the recipe's tests."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.prompts import completion_text
from aesthetic_jax.data.records import open_records
from aesthetic_jax.data.tokenizer import train_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import PRESETS
from aesthetic_jax.models.internvl import abstract_model
from aesthetic_jax.rl.rollouts import Rollout
from aesthetic_jax.training import mining, sampling
from aesthetic_jax.training.answering import Answering
from aesthetic_jax.training.mesh import make_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
ROLLOUTS = 3
GRAPH, _ = abstract_model(PRESETS["tiny"])


@pytest.fixture(scope="module")
def data(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mining")
    words = ("--num=14", "--image_size=56", "--workers=1", "--splits=1,0,0")
    assert command("synthesize", f"--out={folder}", *words).returncode == 0
    return folder


def make_config(data, **changes):
    config = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"]("hcm_grpo")
    config.data.manifest, config.batch_size = f"{data}/manifest.jsonl", 4
    config.max_completion_length, config.data.threads = 64, 1
    config.hard_cases.mode, config.hard_cases.mine_rollouts = "two_stage", ROLLOUTS
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def mine(data, monkeypatch):
    """Mines 14 samples, number i solved by i % 4 of 3 completions; counts sampled batches."""
    records = open_records(str(data / "manifest.jsonl"))
    texts = []
    for index in range(len(records)):
        record = records[index]
        wrong = frozenset("AB") if record.answer != frozenset("AB") else frozenset("C")
        texts.append(
            [
                completion_text("so", record.answer if g < index % 4 else wrong)
                for g in range(ROLLOUTS)
            ],
        )
    tokenizer = train_tokenizer([text for group in texts for text in group], 300)
    ids = np.full((len(records), ROLLOUTS, 64), tokenizer.pad, np.int32)
    mask = np.zeros(ids.shape, bool)
    for b, group in enumerate(texts):
        for g, text in enumerate(group):
            encoded = tokenizer.encode(text)
            ids[b, g, : len(encoded)], mask[b, g, : len(encoded)] = encoded, True
    preprocessor = Preprocessor(tokenizer, 28, 1, 5, 1, (512,), (64,))
    table = jnp.asarray(ids), jnp.asarray(mask)
    batches = []

    def rollout(parameters, batch, key, *, sampling, **_):
        assert sampling.group == ROLLOUTS
        ids, mask = table[0][batch.index], table[1][batch.index]
        return Rollout(ids, mask, jnp.zeros(ids.shape), jnp.ones(ids.shape[:2], bool))

    decode = sampling.decode
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    monkeypatch.setattr(sampling, "rollout", rollout)
    monkeypatch.setattr(sampling, "decode", lambda *x: batches.append(1) or decode(*x))

    def run(folder, step=0, stop_after=None, chosen=None, **changes):
        batches.clear()
        config = make_config(data, **changes)
        sampler = mining.make_mining_sampler(config, GRAPH, preprocessor, mesh)
        ids = [records.ids()[i] for i in range(14) if chosen is None or i in chosen]
        work = Answering(sampler, records, ids, epath.Path(folder), "mining", chosen)
        table = mining.mine(config, work, {}, "a model", lambda: len(batches) == stop_after, step)
        return table, len(batches)

    run.records = records
    run.texts = texts
    return run


def test_what_is_mined(mine, tmp_path):
    table, batches = mine(tmp_path / "out", step=6)
    assert batches == 4
    expected = np.arange(14) % 4 / 3
    np.testing.assert_allclose(table.pass_rate, expected, atol=1e-7)
    assert (table.count == ROLLOUTS).all()
    np.testing.assert_array_equal(table.num_exact, np.arange(14) % 4)
    assert (table.last_seen == 6).all()
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    ]
    records = mine.records
    assert [row["id"] for row in rows] == records.ids()
    for index, row in enumerate(rows):
        assert row["dimension"] == records[index].dimension
        assert row["answer"] == sorted(records[index].answer)
        assert row["completions"] == [text.removesuffix("<|im_end|>") for text in mine.texts[index]]
        assert row["exact"] == table.pass_rate[index]
    described = json.loads((tmp_path / "out" / "mining.json").read_text())
    assert described["settings"]["model"] == "a model"
    assert described["result"]["hard_cases/never_solved"] == 4 / 14
    loaded = mining.load_table(str(tmp_path / "out"), records.ids(), 0.5)
    np.testing.assert_array_equal(loaded.pass_rate, table.pass_rate)
    np.testing.assert_array_equal(loaded.num_exact, table.num_exact)
    assert (loaded.last_seen == 0).all()
    text = mining.summarize_table(table, records.dimensions())
    assert text.splitlines()[-1].split() == ["overall", "14", "0.452", "28.6%", "50.0%", "21.4%"]


def test_chosen_samples_are_mined(mine, tmp_path):
    """The rollout's stand-in, like the real one's noise, goes by the sample's own index."""
    chosen = np.array([2, 3, 5, 9, 13])
    table, batches = mine(tmp_path / "out", chosen=chosen)
    assert batches == 2
    np.testing.assert_array_equal(table.num_exact, chosen % 4)
    lines = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [mine.records.ids()[i] for i in chosen]
    with pytest.raises(UserError, match="was mined with samples"):
        mine(tmp_path / "out")


@pytest.mark.parametrize("in_bucket", [False, True])
@pytest.mark.parametrize("cut", range(1, 5))
def test_stopped_mining_goes_on(mine, tmp_path, request, cut, in_bucket):
    """Complete batches are not sampled again; a damaged one is."""
    whole, _ = mine(tmp_path / "whole")
    out = epath.Path(request.getfixturevalue("bucket") if in_bucket else tmp_path) / "cut"
    stopped, batches = mine(out, stop_after=cut)
    assert (stopped is None) == (cut < 4)  # after the last batch nothing is left to stop
    assert batches == cut
    parts = sorted((out / "parts").iterdir()) if stopped is None else []
    assert len(parts) == cut % 4
    if len(parts) == 3:
        lines = parts[1].read_text().splitlines(keepends=True)
        parts[1].write_text("".join(lines[:-1]) if in_bucket else "".join(lines)[:-20])
    table, batches = mine(out)
    assert batches == (3, 2, 3, 0)[cut - 1]
    for a, b in zip(table, whole, strict=True):
        np.testing.assert_array_equal(a, b)
    names = {"completions.jsonl", "table.npz", "mining.json"}
    assert {x.name for x in out.iterdir()} == names
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_of_something_else_is_refused(mine, tmp_path):
    mine(tmp_path / "out")
    with pytest.raises(UserError, match=r"mining\.json: was mined with seed 0, not 3"):
        mine(tmp_path / "out", seed=3)
    (tmp_path / "out" / "mining.json").write_text("[")
    with pytest.raises(UserError, match="can't be read"):
        mine(tmp_path / "out")
    (tmp_path / "out" / "mining.json").unlink()
    with pytest.raises(UserError, match="exists already"):
        mine(tmp_path / "out")


def test_a_table_finds_samples_by_their_ids(mine, tmp_path):
    table, _ = mine(tmp_path / "out")
    ids = mine.records.ids()
    loaded = mining.load_table(str(tmp_path / "out"), ["new", *reversed(ids[3:])], 0.25)
    np.testing.assert_array_equal(loaded.pass_rate, [0.25, *table.pass_rate[:2:-1]])
    np.testing.assert_array_equal(loaded.count, [0] + [ROLLOUTS] * 11)
    np.testing.assert_array_equal(loaded.last_seen, [-1] + [0] * 11)
    with pytest.raises(UserError, match="none of the train split's samples"):
        mining.load_table(str(tmp_path / "out"), ["x", "y"], 0.5)


def test_a_damaged_table_is_refused(mine, tmp_path):
    with pytest.raises(UserError, match="is missing; aesthetic-jax mine"):
        mining.load_table(str(tmp_path), ["a"], 0.5)
    whole, _ = mine(tmp_path / "out")
    file = tmp_path / "out" / "table.npz"
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    flipped = []
    for place in rng.integers(0, len(content), 20):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        flipped.append(bytes(changed))
    for damaged in (
        b"",
        b"text",
        *(content[:x] for x in rng.integers(0, len(content), 10)),
        *flipped,
    ):
        file.write_bytes(damaged)
        try:
            loaded = mining.load_table(str(tmp_path / "out"), mine.records.ids(), 0.5)
        except UserError:
            continue
        np.testing.assert_array_equal(loaded.pass_rate, whole.pass_rate)  # a bit that ZIP ignores
        np.testing.assert_array_equal(loaded.count, whole.count)
        np.testing.assert_array_equal(loaded.num_exact, whole.num_exact)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_exact": None}, "is no whole table .*num_exact"),
        ({"num_exact": np.array([4, 0])}, "is no difficulty table"),
        ({"num_exact": np.array([-1, 0])}, "is no difficulty table"),
        ({"num_exact": np.array([1])}, "is no difficulty table"),
        ({"pass_rate": np.array([np.nan, 0.0])}, "is no difficulty table"),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path, changes, words):
    arrays = dict(
        ids=np.array(["a", "b"]),
        pass_rate=np.array([1 / 3, 0.0]),
        count=np.array([3, 3]),
        last_seen=np.array([0, 0]),
        num_exact=np.array([1, 0]),
    )
    kept = {name: x for name, x in (arrays | changes).items() if x is not None}
    np.savez(tmp_path / "table.npz", **kept)
    with pytest.raises(UserError, match=words) as error:
        mining.load_table(str(tmp_path), ["a", "b"], 0.5)
    assert "\n" not in str(error.value)
