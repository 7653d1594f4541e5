"""Sharding rules: which mesh axis splits each axis of parameters and activations.

A mesh has the axes `data` (rows of the batch; across slices), `fsdp` (rows too, and the storage of
parameters) and `tensor` (heads, MLP and vocabulary). The model reads the mesh from JAX's context
(`jax.set_mesh`); without one nothing is split.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from aesthetic_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")  # mesh axes that rows are split over
_ROW_AXES = {"batch": BATCH_AXES, "slice": ("data",)}  # of activations; see `constrain`
_FSDP = "fsdp"  # splits parameters only in storage: they are all-gathered where they are used

# Logical axis -> mesh axis; None: replicated. A mesh axis that the mesh lacks splits nothing.
RULES: Mapping[str, str | None] = {
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layers": None,  # the scan runs along it
    "replicated": None,  # an axis that `replicate_layers` all-gathered
    "lora": None,
    "norm": None,
    "patch": None,
    "positions": None,
}


def partition_spec(
    name: str,
    axes: tuple[str, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, str | None] = RULES,
) -> PartitionSpec:
    """The partition spec of one parameter.

    Args:
        name: the parameter's name for error messages.
        axes: its logical axes, one per axis of `shape`.
        shape: shape of the whole parameter.
        mesh: may lack mesh axes that the rules name.
        rules: logical axis -> mesh axis.

    Raises:
        UserError: an axis has no rule, two axes share a mesh axis, or a mesh axis doesn't divide an
            axis.
    """
    spec = []
    for axis, size in zip(axes, shape, strict=True):
        if axis not in rules:
            raise UserError(f"{name}: no rule for its axis '{axis}'; add one to the sharding rules")
        target = rules[axis] if rules[axis] in mesh.axis_names else None
        if target in spec and target is not None:
            raise UserError(
                f"{name}: its axes {axes} use mesh axis '{target}' twice; change a sharding rule"
            )
        if target is not None and size % mesh.shape[target]:
            raise UserError(
                f"{name}: axis '{axis}' of {size} can't be divided over the {mesh.shape[target]} "
                f"devices of mesh axis '{target}'; choose a size that divides it"
            )
        spec.append(target)
    while spec and spec[-1] is None:  # P() and P(None) mean the same but don't compare equal
        spec.pop()
    return PartitionSpec(*spec)


def parameter_shardings(
    model: nnx.Module, mesh: Mesh | AbstractMesh
) -> dict[tuple[str, ...], NamedSharding]:
    """The sharding of each parameter, by its path; the model may be abstract."""
    shardings = {}
    for keys, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        path = tuple(map(str, keys))
        axes = variable.get_metadata()["logical_axes"]
        shardings[path] = NamedSharding(
            mesh, partition_spec(".".join(path), axes, variable.shape, mesh)
        )
    return shardings


def constrain(x: Array, *axes: str | None) -> Array:
    """Fixes how an activation is split in a program compiled for a mesh; without a mesh, returns x.

    Args:
        x: the activation.
        axes: logical axes of its leading axes: "batch", "slice" (rows, over `data` alone) or a name
            of the rules; None or missing: not split. An axis that its mesh axes don't divide is not
            split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    spec = []
    for axis, size in zip(axes, x.shape, strict=False):
        targets = () if axis is None else _ROW_AXES.get(axis, (RULES.get(axis),))
        present = tuple(name for name in targets if name in mesh.axis_names)
        shards = int(np.prod([mesh.shape[name] for name in present]))
        spec.append(present if present and size % shards == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def map_row_shards(
    function: Callable[[Array, Array, Array], tuple[Array, ...]],
    first: Array,
    second: Array,
    replicated: Array,
) -> tuple[Array, ...]:
    """function(first, second, replicated), run by each device on its own rows of the first two.

    A gradient of `replicated` that accumulates in a loop inside the function is summed over devices
    once, after the loop, instead of at every iteration. Without a mesh in context, or where its
    devices don't divide the rows, this is a plain call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name in BATCH_AXES if name in mesh.axis_names)
    shards = math.prod(mesh.shape[name] for name in axes)
    if shards == 1 or len(first) % shards:
        return function(first, second, replicated)

    def on_one_device(first, second, replicated):
        # Marked as varying; otherwise each use would sum its gradient over devices.
        return function(first, second, jax.lax.pcast(replicated, axes, to="varying"))

    rows = PartitionSpec(axes)
    return jax.shard_map(
        on_one_device, in_specs=(rows, rows, PartitionSpec()), out_specs=rows, axis_names=set(axes)
    )(first, second, replicated)


def replicate_layers(layers: nnx.Module, dtype: DTypeLike) -> nnx.Module:
    """Stacked layers with parameters all-gathered over `fsdp`, in their compute dtype.

    For decoding loops, which would otherwise all-gather every layer for every token. Each device
    holds all layers until the loop ends.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _splits_storage(mesh):
        return layers
    graph, state = nnx.split(layers)
    variables = dict(nnx.to_flat_state(state))
    for path, variable in variables.items():
        axes = variable.get_metadata()["logical_axes"]
        if any(RULES[axis] == _FSDP for axis in axes):
            gathered_axes = tuple("replicated" if RULES[axis] == _FSDP else axis for axis in axes)
            sharded, gathered = (
                partition_spec(".".join(map(str, path)), names, variable.shape, mesh)
                for names in (axes, gathered_axes)
            )
            x = jax.lax.with_sharding_constraint(variable[...].astype(dtype), sharded)
            x = jax.lax.with_sharding_constraint(x, gathered)
            variables[path] = nnx.Param(x, logical_axes=gathered_axes)
    return nnx.merge(graph, nnx.from_flat_state(variables))


def all_gather_parameter(parameter: nnx.Variable, dtype: DTypeLike) -> Array:
    """A parameter in its compute `dtype`, all-gathered over `fsdp`.

    It is cast before the all-gather, to send fewer bytes. The backward pass reduce-scatters its
    gradient.
    """
    mesh = jax.sharding.get_abstract_mesh()
    x = parameter[...]
    if not _splits_storage(mesh):
        return x.astype(dtype)
    # Inside a scan x has lost its leading `layers` axis, but the metadata keeps it.
    axes = parameter.get_metadata()["logical_axes"][-x.ndim :]
    sharded = partition_spec("parameter", axes, x.shape, mesh)
    if _FSDP not in sharded:
        return x.astype(dtype)
    gathered = PartitionSpec(*(None if axis == _FSDP else axis for axis in sharded))
    return _all_gather(
        jax.lax.with_sharding_constraint(x.astype(dtype), sharded), sharded, gathered
    )


def _splits_storage(mesh: AbstractMesh) -> bool:
    return _FSDP in mesh.axis_names and mesh.shape[_FSDP] > 1


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _all_gather(x: Array, sharded: PartitionSpec, gathered: PartitionSpec) -> Array:
    return jax.lax.with_sharding_constraint(x, gathered)


_all_gather.defvjp(
    lambda x, sharded, gathered: (_all_gather(x, sharded, gathered), None),
    lambda sharded, gathered, _, gradient: (jax.lax.with_sharding_constraint(gradient, sharded),),
)
