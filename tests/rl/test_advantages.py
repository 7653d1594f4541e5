import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aesthetic_jax.rl.advantages import group_advantages


def test_vector_of_the_reference():
    advantages = group_advantages(jnp.array([[1, 0.5, 0, 0.25]]))
    np.testing.assert_allclose(
        advantages, [[1.3171566, 0.14635073, -1.02445513, -0.4390522]], atol=1e-6
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.75, 0.1, 1 / 3])
def test_equal_rewards_have_no_advantage_at_all(scale, value):
    rewards = jnp.array([[value] * 7, [0, 1, 0, 1, 0, 1, 0]])
    advantages = group_advantages(rewards, scale)
    assert (np.asarray(advantages[0]) == 0).all()
    assert (np.asarray(advantages[1]) != 0).all()


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)))
def test_scalings(rewards):
    centred = rewards - rewards.mean(1, keepdims=True)
    deviation = {
        "none": 1.0,
        "batch": rewards.std(ddof=1) + 1e-4,
        "group": rewards.std(1, ddof=1, keepdims=True) + 1e-4,
    }
    for scale, divisor in deviation.items():
        # a spread below float32's rounding of the mean is scaled up by at most 1 / epsilon
        np.testing.assert_allclose(
            group_advantages(jnp.array(rewards), scale), centred / divisor, atol=4e-3
        )


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="group, batch, none"):
        group_advantages(jnp.ones((3, 2)), "row")
