"""The programs of each step and their abstract arguments."""

import jax
import pytest

from aesthetic_jax.aot.programs import step_programs, tiles_per_prompt
from aesthetic_jax.errors import UserError


def check(setup, programs):
    """Checks that every program traces with its arguments."""
    with jax.set_mesh(setup.mesh):
        for program in programs:
            jax.eval_shape(program.function, *program.arguments)


def test_an_sft_step_adds_up_the_gradients_of_microbatches_and_applies_them(make_setup):
    setup = make_setup("sft")
    steps = step_programs(setup)
    assert steps.keys() == {"sft"}
    add, apply = steps["sft"]
    assert (add.runs, apply.runs) == (2, 1)
    total, trained, frozen, microbatch, tokens, reference = add.arguments
    assert total is trained is setup.state.trained
    assert "vision" in frozen
    assert microbatch.completion_ids.shape == (4, 1, 6)
    assert microbatch.prompt_ids.shape == (4, 12)
    assert (tokens.shape, reference) == ((), None)
    check(setup, steps["sft"])


@pytest.mark.parametrize("freeze", [("vision",), ()])
def test_a_grpo_step_is_a_rollout_and_an_update(make_setup, freeze):
    fields = dict(model__freeze=freeze, grpo__beta=0.1, grpo__num_iterations=2, micro_batches=1)
    setup = make_setup("grpo", **fields)
    steps = step_programs(setup)
    assert steps.keys() == {"rollout", "update"}
    *first, sample = steps["rollout"]
    assert len(first) == len(freeze)  # a frozen vision tower runs once per batch
    assert (sample.runs, sample.trips) == (1, 6)
    gradient, apply = steps["update"]
    assert (gradient.runs, apply.runs) == (1, 1)
    _, _, experience, _, reference = gradient.arguments
    for name in ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs"):
        assert getattr(experience, name).shape == (8, 8, 6)
    assert reference is setup.parameters
    for programs in steps.values():
        check(setup, programs)


def test_a_thumbnail_is_one_more_tile_per_image(make_setup):
    assert tiles_per_prompt(make_setup("sft").config) == 5
    assert tiles_per_prompt(make_setup("sft", data__max_tiles=6).config) == 35


def test_a_batch_that_does_not_fit_the_mesh_is_refused(make_setup):
    with pytest.raises(UserError, match="batch_size"):
        make_setup("sft", batch_size=9)
