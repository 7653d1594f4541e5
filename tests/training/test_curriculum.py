"""Which samples a run shows in each mode, and when it mines; mining itself is a stand-in."""

from unittest import mock

import numpy as np
import pytest

from aesthetic_jax.data import hard_cases
from aesthetic_jax.data.pipeline import Batch, Preprocessor, epoch_plan
from aesthetic_jax.data.records import Records
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import curriculum as module
from aesthetic_jax.training.config import grpo_config
from aesthetic_jax.training.setup import TrainSetup
from aesthetic_jax.training.state import TrainState

SIZE, BATCH, STEPS = 40, 4, 12


class Samples(Records):
    """40 samples; the first ten are never solved."""

    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        raise NotImplementedError

    image_name = has_reasoning = __getitem__

    def ids(self):
        return [f"s{i}" for i in range(SIZE)]

    def dimensions(self):
        return np.arange(SIZE) % 2

    def num_options(self):
        return np.full(SIZE, 4)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the curriculum for 12 steps; returns it, each step's samples, and what was mined."""

    def planned_batches(records, plan, preprocessor, size, *, start, **_):
        empty = Batch(*[None] * len(Batch._fields))
        return (empty._replace(index=row) for row in plan.reshape(-1, size)[start:])

    monkeypatch.setattr(module, "planned_batches", planned_batches)
    monkeypatch.setattr(module, "local_rows", lambda *_: None)
    monkeypatch.setattr(module.mining, "make_mining_sampler", lambda *_: None)

    def start(mode, stop_at=STEPS, resumed=None, **fields):
        config = grpo_config()
        config.num_steps, config.batch_size = STEPS, BATCH
        config.hard_cases.update(dict(mode=mode, round_steps=3, mine_rollouts=2) | fields)
        setup = TrainSetup(config, *[None] * 6)
        preprocessor = mock.Mock(spec=Preprocessor)
        curriculum = module.Curriculum(setup, Samples(), preprocessor, str(tmp_path), lambda: False)
        mined, shown, first = [], [], 0
        if resumed is not None:
            first, progress = resumed
            curriculum.restore(progress)

        def mine(config, work, parameters, model, should_stop, step):
            assert work.folder.name == str(step)
            assert work.ids == [f"s{i}" for i in work.indices]
            mined.append((step, work.indices.tolist()))
            rate = (work.indices >= 10).astype(float)
            rows = np.arange(len(rate))
            table = hard_cases.init_table(len(rate))
            return hard_cases.update_table(table, rows, rate, step, config.hard_cases, 2)

        monkeypatch.setattr(module.mining, "mine", mine)
        state = mock.Mock(spec=TrainState)
        for step in range(first, stop_at):
            batch = curriculum.next_batch(step, state).index
            shown.append(batch.tolist())
            curriculum.record(step, (batch >= 10).astype(float))
        return curriculum, shown, mined

    return start


def epoch(round_index):
    return epoch_plan(0, round_index, np.arange(SIZE), 3 * BATCH).reshape(-1, BATCH).tolist()


def test_off_shows_shuffled_epochs(run):
    _, shown, mined = run("off")
    assert shown == [batch for r in range(4) for batch in epoch(r)]
    assert mined == []


def test_the_first_round_of_online_is_that_of_off(run):
    _, shown, mined = run("online")
    assert shown[:3] == epoch(0)
    assert shown[3:6] != epoch(1)
    assert mined == []


def test_online_starts_with_a_table_that_is_given(run):
    _, shown, _ = run("online", table="somewhere")
    assert shown[:3] != epoch(0)


def test_two_stage_mines_all_once_and_then_learns_from_training(run):
    curriculum, shown, mined = run("two_stage", mine_step=3, coverage_quota=0.0, floor=0.01)
    assert mined == [(3, list(range(SIZE)))]
    assert shown[:3] == epoch(0)
    later = np.array(shown[3:]).ravel()
    assert (later < 10).mean() > 0.9
    table, _ = curriculum.progress
    visits = np.bincount(later, minlength=SIZE)
    np.testing.assert_array_equal(table.count, 2 + 8 * visits)
    np.testing.assert_array_equal(table.num_exact, np.where(np.arange(SIZE) < 10, 0, table.count))


def test_mining_does_not_count_as_a_visit(run):
    """The coverage quota goes by training's visits."""
    curriculum, shown, _ = run("two_stage", mine_every=3)
    table, _ = curriculum.progress
    expected = np.full(SIZE, -1)
    for step, batch in enumerate(shown, start=1):
        expected[batch] = step
    np.testing.assert_array_equal(table.last_seen, expected)


def test_mining_again_probes_the_hardest(run):
    curriculum, _, mined = run("two_stage", mine_every=6, mine_probe=0.25)
    assert mined == [(0, list(range(SIZE))), (6, list(range(10)))]
    steps = [step for step in range(STEPS) if curriculum.mines_before(step)]
    assert steps == [0, 6]
    _, _, mined = run("two_stage", mine_every=3, mine_step=6)
    assert mined == [(6, list(range(SIZE))), (9, list(range(SIZE)))]


def test_a_given_table_replaces_the_first_mining_alone(run):
    _, _, mined = run("two_stage", table="somewhere", mine_every=6)
    assert [step for step, _ in mined] == [6]
    assert run("two_stage", table="somewhere")[2] == []


@pytest.mark.parametrize("cut", [4, 6, 9, 11])
def test_a_resumed_run_shows_the_same(run, cut):
    fields = dict(mine_every=6, mine_probe=0.5, weighting="variance")
    whole, shown, _ = run("two_stage", **fields)
    half, before, _ = run("two_stage", stop_at=cut, **fields)
    resumed, after, _ = run("two_stage", resumed=(cut, half.progress), **fields)
    assert before + after == shown
    for a, b in zip(*(x.progress[0] for x in (whole, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_grpo_refuses_descriptions(run, monkeypatch):
    options = np.full(SIZE, 4)
    options[7] = 0
    monkeypatch.setattr(Samples, "num_options", lambda _: options)
    said = (
        r"^config\.data: the train split has descriptions, without candidates; GRPO needs [^\n]*$"
    )
    with pytest.raises(UserError, match=said):
        run("off")


def test_runs_with_mining_say_what_it_can_do(run):
    assert run("off", stop_at=0)[0].forecast() == ""
    line = run("online", stop_at=0)[0].forecast()
    assert "hard-case mining: 1.20 visits a sample" in line
    assert "assumed" not in run("two_stage", stop_at=0, table="somewhere")[0].forecast()
