"""The check of a config's values: accepted values, and one-line errors for others."""

import pathlib
import runpy

import pytest

from aesthetic_jax.errors import UserError
from aesthetic_jax.training.config import base_config, check_config, grpo_config, sft_config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILES = [path.name for path in sorted(CONFIGS.glob("*_internvl3_2b.py"))]
METHODS = ("pretrain", "sft", "grpo", "dpa_grpo", "hcm_grpo", "hcm_grpo_online")


def load(name, *method):
    config = runpy.run_path(str(CONFIGS / name))["get_config"](*method)
    config.data.data_dir = "somewhere"
    return config


@pytest.mark.parametrize("name", FILES)
def test_the_2b_configs_are_valid(name):
    check_config(load(name))


@pytest.mark.parametrize("method", METHODS)
def test_the_quickstart_configs_are_valid(method):
    check_config(load("quickstart.py", method))


def test_the_quickstart_names_its_methods():
    with pytest.raises(UserError, match=r"no method 'ppo'; choose from pretrain, sft, grpo"):
        load("quickstart.py", "ppo")


def test_hard_case_defaults_have_one_home():
    assert base_config().hard_cases == sft_config().hard_cases == grpo_config().hard_cases


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "ppo"),
        ("num_steps", 0),
        ("batch_size", 0),
        ("micro_batches", 3),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("max_completion_length", 1),
        ("model.preset", "internvl9_2b"),
        ("model.dtype", "float16"),
        ("model.remat", "some"),
        ("model.attention", "flash"),
        ("data.max_tiles", 0),
        ("data.prompt_buckets", ()),
        ("data.prompt_buckets", (512, 256)),
        ("data.completion_buckets", (1, 256)),
        ("data.manifest", "another"),
        ("grpo.num_generations", 1),
        ("grpo.temperature", 0.0),
        ("grpo.num_iterations", 0),
        ("reward.gate", "half"),
        ("hard_cases.mode", "both"),
        ("hard_cases.weighting", "continuous"),
        ("hard_cases.round_steps", 0),
        ("hard_cases.floor", -0.1),
        ("hard_cases.coverage_quota", 1.5),
        ("hard_cases.prior", 2.0),
        ("hard_cases.decay", -1.0),
        ("hard_cases.hard_below", 1.1),
        ("hard_cases.oversampling", 0.5),
        ("hard_cases.power", 0.0),
        ("hard_cases.rest_after_completions", -1),
        ("hard_cases.rest_steps", 0),
        ("hard_cases.mine_step", 7),
        ("hard_cases.mine_rollouts", 0),
        ("hard_cases.mine_every", -50),
        ("hard_cases.mine_every", 7),
        ("hard_cases.mine_probe", 0.0),
        ("hard_cases.mine_probe", 1.5),
        ("hard_cases.repeat_distance", 0),
    ],
)
def test_a_bad_value_is_refused_by_its_field(field, value):
    config = load("hcm_grpo_internvl3_2b.py")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=rf"^config\.{field}: ") as error:
        check_config(config)
    assert "\n" not in str(error.value)


def test_sft_has_no_difficulty():
    config = load("sft_internvl3_2b.py")
    config.hard_cases.mode = "online"
    with pytest.raises(UserError, match=r"config\.hard_cases\.mode: .* SFT has none"):
        check_config(config)


def test_only_two_stage_mines_again():
    config = load("hcm_grpo_internvl3_2b.py")
    config.hard_cases.mine_every = 2 * config.hard_cases.round_steps
    check_config(config)
    config.hard_cases.mode = "online"
    with pytest.raises(UserError, match=r"hard_cases\.mine_every: is used only where"):
        check_config(config)


@pytest.mark.parametrize(
    ("method", "reward", "mode"),
    [
        ("grpo", "exact", "off"),
        ("dpa_grpo", "subset", "off"),
        ("hcm_grpo", "subset", "two_stage"),
        ("hcm_grpo_online", "subset", "online"),
    ],
)
def test_methods_differ_in_reward_and_mining_alone(method, reward, mode):
    changes = {"reward.variant": reward, "hard_cases.mode": mode}
    for config, plain in (
        (load(f"{method}_internvl3_2b.py"), load("grpo_internvl3_2b.py")),
        (load("quickstart.py", method), load("quickstart.py", "grpo")),
    ):
        plain.update_from_flattened_dict(changes)
        plain.hard_cases.mine_rollouts = config.hard_cases.mine_rollouts
        assert config == plain


def test_a_table_goes_with_mining_from_the_start():
    config = load("hcm_grpo_internvl3_2b.py")
    config.hard_cases.table = "somewhere"
    check_config(config)
    config.hard_cases.mine_step = config.hard_cases.round_steps
    with pytest.raises(UserError, match=r"hard_cases\.table: goes with"):
        check_config(config)
    config.hard_cases.mine_step, config.hard_cases.mode = 0, "off"
    with pytest.raises(UserError, match=r"hard_cases\.table: is not used"):
        check_config(config)
