"""The sharding rules, and the shardings that `abstract_model` derives from them."""

import jax
import pytest

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import PRESETS
from aesthetic_jax.models.internvl import abstract_model
from aesthetic_jax.models.sharding import RULES, partition_spec


def mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_axes_follow_the_rules():
    axes, shape = ("layers", "embed", "mlp"), (28, 1536, 8960)
    assert partition_spec("x", axes, shape, mesh(fsdp=8, tensor=4)) == jax.P(None, "fsdp", "tensor")
    assert partition_spec("x", axes, shape, mesh(fsdp=8)) == jax.P(None, "fsdp")
    assert partition_spec("x", axes, shape, mesh(data=8)) == jax.P()


@pytest.mark.parametrize(
    ("sizes", "rules", "words"),
    [
        (dict(fsdp=8, tensor=3), RULES, ["up.kernel", "'mlp' of 8960", "3 devices", "'tensor'"]),
        (dict(fsdp=8), RULES | {"mlp": "fsdp"}, ["up.kernel", "'fsdp' twice"]),
        (dict(fsdp=8), {"layers": None, "embed": "fsdp"}, ["up.kernel", "no rule", "'mlp'"]),
    ],
)
def test_what_does_not_fit_is_named(sizes, rules, words):
    with pytest.raises(UserError) as error:
        partition_spec(
            "up.kernel", ("layers", "embed", "mlp"), (28, 1536, 8960), mesh(**sizes), rules
        )
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "tiny"])
def test_every_preset_splits_over_a_slice(preset):
    _, parameters = abstract_model(PRESETS[preset], mesh(data=2, fsdp=16, tensor=2))
    leaves = jax.tree.leaves(parameters)
    per_device = sum(
        x.size / 16 ** ("fsdp" in x.sharding.spec) / 2 ** ("tensor" in x.sharding.spec)
        for x in leaves
    )
    assert per_device < sum(x.size for x in leaves) / 15
