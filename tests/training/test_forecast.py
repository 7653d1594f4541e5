"""What a run's first line says of hard-case mining."""

import pathlib
import runpy
import time

import numpy as np
import pytest

from aesthetic_jax.data.hard_cases import DifficultyTable
from aesthetic_jax.training.config import grpo_config
from aesthetic_jax.training.forecast import describe, forecast_mining

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def make_config(mode="two_stage", **changes):
    config = grpo_config()
    config.hard_cases.mode = mode
    config.hard_cases.update(changes.pop("hard_cases", {}))
    config.update(changes)
    return config


def test_visits_and_completions():
    """160 steps of 16 on 1,280 samples: mined before step 0, and a tenth of them twice again."""
    again = dict(round_steps=10, mine_every=60, mine_probe=0.1, mine_rollouts=4)
    config = make_config(num_steps=160, batch_size=16, hard_cases=again)
    forecast = forecast_mining(config, 1280)
    assert forecast.visits == 2.0
    assert forecast.training_completions == 160 * 16 * 8
    assert forecast.mining_completions == 4 * (1280 + 2 * 128)
    assert forecast.hard_samples == 0.25
    # Weights .94 and .1, of 80 % of the visits; the rest goes to those not drawn, mostly easy ones.
    assert forecast.hard_visits == pytest.approx(0.8 * 0.236 / (0.236 + 0.075), abs=0.03)
    line = describe(forecast)
    assert line.startswith("hard-case mining: 2.00 visits a sample")
    assert "a quarter of the samples is solved by chance" in line
    assert "6,144 completions beside training's 20,480" in line


@pytest.mark.parametrize("mode", ["online", "two_stage"])
def test_a_run_that_shows_most_samples_once_is_warned_of(mode):
    forecast = forecast_mining(make_config(mode, num_steps=400), 102_400)
    assert forecast.revisits < 0.3
    line = describe(forecast)
    assert line.startswith("WARNING: hard-case mining")
    assert "\n" not in line


def test_equal_weights_in_one_epoch_bring_no_revisits():
    config = make_config("online", num_steps=64, hard_cases=dict(floor=1.0, round_steps=1))
    assert forecast_mining(config, 4096).revisits < 0.5
    config = make_config(num_steps=64, hard_cases=dict(floor=1.0, round_steps=64))
    assert forecast_mining(config, 4096).revisits < 0.01


def test_a_table_tells_what_is_hard():
    config = make_config(hard_cases=dict(table="somewhere"), num_steps=300)
    hard = np.arange(9000) % 10 == 0
    table = DifficultyTable(
        np.where(hard, 0.0, 1.0),
        np.full(9000, 8, np.int32),
        np.zeros(9000, np.int32),
        np.where(hard, 0, 8).astype(np.int32),
    )
    forecast = forecast_mining(config, 9000, table, np.arange(9000) % 4, np.full(9000, 4))
    assert forecast.hard_samples == pytest.approx(0.1, abs=0.02)
    assert forecast.hard_visits == pytest.approx(0.8 * 0.1 / (0.1 + 0.09), abs=0.04)
    assert forecast.mining_completions == 0
    assert "assumed" not in describe(forecast)


def test_variance_assumes_samples_that_are_solved_half_of_the_time():
    config = make_config(hard_cases=dict(weighting="variance"))
    forecast = forecast_mining(config, 5000)
    assert "half of the time" in describe(forecast)
    assert forecast.hard_visits > 0.5


@pytest.mark.parametrize("num_samples", [1, 3, 1_000_000])
def test_any_size_of_data_has_a_forecast(num_samples):
    forecast = forecast_mining(make_config(num_steps=1, batch_size=1), num_samples)
    assert 0 <= forecast.revisits <= 1


@pytest.mark.parametrize("name", ["hcm_grpo", "hcm_grpo_online"])
def test_mining_can_work_in_the_2b_configs(name):
    """At the paper's size, 128,000 samples, of which 80 % are for training; in a second."""
    config = runpy.run_path(str(CONFIGS / f"{name}_internvl3_2b.py"))["get_config"]()
    start = time.process_time()
    forecast = forecast_mining(config, 102_400, None, np.zeros(102_400, int), np.full(102_400, 4))
    assert time.process_time() - start < 1
    assert forecast.visits == 2.0
    assert forecast.revisits == pytest.approx(0.57 if name == "hcm_grpo" else 0.5, abs=0.02)
    assert forecast.mining_completions <= forecast.training_completions / 4
