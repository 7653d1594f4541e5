"""Which mesh axis each axis of a parameter is split over: rules by logical names, and the checks that they fit a mesh."""

from collections.abc import Mapping

from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aesthetic_jax.errors import UserError

# Logical axis -> mesh axis; None: every device holds all of it. A mesh may lack axes, which then split nothing.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,  # the scan walks along it
    "lora": None,
    "norm": None,
    "patch": None,
    "positions": None,
}


def partition_spec(
    name: str, axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, str | None] = RULES
) -> PartitionSpec:
    """How one parameter is split.

    Args:
        name: what errors call it.
        axes: its logical axes, one for each of `shape`.
        shape: of the whole parameter.
        mesh: its axes may be any of those that the rules name.
        rules: logical axis -> mesh axis.

    Raises:
        UserError: no rule for an axis, two axes on one mesh axis, or an axis that the mesh axis doesn't divide.
    """
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in rules:
            raise UserError(f"{name}: no rule for its axis '{axis}'; add one to the sharding rules")
        target = rules[axis] if rules[axis] in mesh.axis_names else None
        if target in spec and target is not None:
            raise UserError(f"{name}: its axes {axes} fall on mesh axis '{target}' twice; change a sharding rule")
        if target is not None and size % mesh.shape[target]:
            raise UserError(
                f"{name}: axis '{axis}' of {size} can't be divided over the {mesh.shape[target]} devices of mesh axis "
                f"'{target}'; choose a size that divides it"
            )
        spec.append(target)
    while spec and spec[-1] is None:  # P() and P(None) mean the same, but don't compare equal
        spec.pop()
    return PartitionSpec(*spec)


def parameter_shardings(model: nnx.Module, mesh: Mesh) -> dict[tuple[str, ...], NamedSharding]:
    """The sharding of each of a model's parameters, by its path; the model may be abstract."""
    return {
        path: NamedSharding(
            mesh, partition_spec(".".join(path), variable.get_metadata()["logical_axes"], variable.shape, mesh)
        )
        for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))
    }
