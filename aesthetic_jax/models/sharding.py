"""Which mesh axis each axis of an array is split over: rules by logical names, and the checks that they fit a mesh.

A mesh has axes of `data` (rows of the batch; across slices), `fsdp` (rows too, and what parameters are stored in pieces over)
and `tensor` (heads, MLP and vocabulary). It reaches the model as JAX's context, `jax.set_mesh`; without one nothing is split.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from aesthetic_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")  # mesh axes that rows are split over
_STORAGE_AXIS = "fsdp"  # splits parameters only where they are kept: they are whole along it where they are used

# Logical axis of a parameter -> mesh axis; None: every device holds all of it. A mesh may lack axes, which then split nothing.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,  # the scan walks along it
    "whole": None,  # an axis that `hold_whole` gathered
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


def by_rows(
    function: Callable[[Array, Array, Array], tuple[Array, ...]], first: Array, second: Array, whole: Array
) -> tuple[Array, ...]:
    """function(first, second, whole), whose first axes but `whole`'s are rows, run by each device on its own rows.

    What XLA would sum over devices at every turn of a loop in it, a gradient of `whole` above all, is summed once behind it.
    Without a mesh in context, and where its devices don't divide the rows, the function is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    shards = math.prod(mesh.shape[name] for name in axes)
    if shards == 1 or len(first) % shards:
        return function(first, second, whole)

    def on_one(first, second, whole):
        # Each device's own from here on: what is the same on all has its gradient summed wherever it is used.
        return function(first, second, jax.lax.pcast(whole, axes, to="varying"))

    rows = PartitionSpec(axes)
    split = jax.shard_map(on_one, in_specs=(rows, rows, PartitionSpec()), out_specs=rows, axis_names=set(axes))
    return split(first, second, whole)


def constrain(x: Array, *axes: str | None) -> Array:
    """Fixes how an activation is split, in a program that is compiled for a mesh.

    Args:
        x: the activation.
        axes: logical axes of its first axes: "batch", "slice" (rows, over `data` alone), or one that the rules name; None, or
            none given: not split. An axis that its mesh axes don't divide is not split either.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for axis, size in zip(axes, x.shape, strict=False):
        wanted = {"batch": BATCH_AXES, "slice": BATCH_AXES[:1], None: ()}.get(axis) or (RULES.get(axis),)
        present = tuple(name for name in wanted if name in mesh.axis_names)
        pieces = int(np.prod([mesh.shape[name] for name in present]))
        spec.append(present if present and size % pieces == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def hold_whole(layers: nnx.Module, dtype: DTypeLike) -> nnx.Module:
    """Stacked layers whose parameters are gathered from the devices that keep pieces of them, in the dtype they are used in.

    For loops over tokens, in which each layer would be gathered for every token. Each device holds all layers meanwhile.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _STORAGE_AXIS not in mesh.axis_names or mesh.shape[_STORAGE_AXIS] == 1:
        return layers
    graph, state = nnx.split(layers)
    held = dict(nnx.to_flat_state(state))
    for path, variable in held.items():
        axes = variable.get_metadata()["logical_axes"]
        if any(RULES[axis] == _STORAGE_AXIS for axis in axes):
            whole = tuple("whole" if RULES[axis] == _STORAGE_AXIS else axis for axis in axes)
            kept, used = (partition_spec(".".join(path), x, variable.shape, mesh) for x in (axes, whole))
            x = jax.lax.with_sharding_constraint(variable[...].astype(dtype), kept)
            held[path] = nnx.Param(jax.lax.with_sharding_constraint(x, used), logical_axes=whole)
    return nnx.merge(graph, nnx.from_flat_state(held))


def gathered(parameter: nnx.Variable, dtype: DTypeLike) -> Array:
    """A parameter in `dtype` as it is computed with: gathered from the devices that keep pieces of it.

    It is cast first, so that no more bytes travel than are used. Its gradient is summed over these devices and cut up again on
    the way back.
    """
    mesh = jax.sharding.get_abstract_mesh()
    x = parameter[...]
    if _STORAGE_AXIS not in mesh.axis_names or mesh.shape[_STORAGE_AXIS] == 1:
        return x.astype(dtype)
    axes = parameter.get_metadata()["logical_axes"][-x.ndim :]  # inside a scan the layers' axis is gone
    kept = partition_spec("parameter", axes, x.shape, mesh)
    used = PartitionSpec(*(None if axis == _STORAGE_AXIS else axis for axis in kept))
    if _STORAGE_AXIS not in kept:
        return x.astype(dtype)
    return _gather(jax.lax.with_sharding_constraint(x.astype(dtype), kept), kept, used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, kept: PartitionSpec, used: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(x, used)


_gather.defvjp(
    lambda x, kept, used: (_gather(x, kept, used), None),
    lambda kept, used, _, gradient: (jax.lax.with_sharding_constraint(gradient, kept),),
)
