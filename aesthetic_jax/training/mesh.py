"""The mesh a run computes on, where its state lives on it, and how rows travel between hosts and devices.

Every host runs the same program. Rows of a batch are split over the axes `data` and `fsdp`: a host loads the rows that its own
devices hold, and what all hosts must agree on (lengths, rewards) is gathered once, in the order of the batch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.sharding import BATCH_AXES, parameter_shardings
from aesthetic_jax.training.state import Parameters

AXES = ("data", "fsdp", "tensor")


def mesh_shape(settings: Any, devices: int, slices: int = 1) -> dict[str, int]:
    """Sizes of the mesh axes.

    Args:
        settings: a config's `mesh`: `data`, `fsdp` and `tensor`; 0 or -1 means what is left. Where `data` and another axis are
            left open, `data` is the number of slices.
        devices: number of them in all slices.
        slices: groups of devices with an interconnect of their own.

    Raises:
        UserError: the sizes don't make up the devices, or `data` does not go across the slices.
    """
    sizes = {axis: settings[axis] for axis in AXES}
    if sizes["data"] <= 0 and min(sizes["fsdp"], sizes["tensor"]) <= 0:
        sizes["data"] = slices
    given = {axis: size for axis, size in sizes.items() if size > 0}
    left = [axis for axis in AXES if axis not in given]
    if len(left) > 1:
        raise UserError("config.mesh: leaves both fsdp and tensor open; give one of them a size")
    taken = int(np.prod(list(given.values())))
    if devices % taken or (not left and taken != devices):
        shown = ", ".join(f"{axis}={size}" for axis, size in given.items())
        raise UserError(
            f"config.mesh: {shown} does not fit {devices} devices; change the sizes, or leave one open with -1"
        )
    sizes |= dict.fromkeys(left, devices // taken)
    if sizes["data"] % slices:
        raise UserError(
            f"config.mesh.data: is {sizes['data']}, and the devices are {slices} slices; give a multiple, or 0 for one a slice"
        )
    return sizes


def make_mesh(settings: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a config's `mesh` over all devices, or those given; `data` goes across slices.

    Raises:
        UserError: see `mesh_shape`.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = mesh_shape(settings, len(devices), slices)
    within = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    if slices == 1:
        grid = mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))  # the compiler splits what no rule names


def describe_mesh(mesh: Mesh) -> str:
    """A mesh in words, for messages."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def row_shards(mesh: Mesh) -> int:
    """Number of pieces that the rows of a batch are split into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_rows(mesh: Mesh, field: str, rows: int, parts: int = 1) -> None:
    """Refuses a batch that can't be split evenly.

    Args:
        mesh: to split over.
        field: of the config that sets the rows, without `config.`.
        rows: of a batch.
        parts: `config.micro_batches`, that it is cut into first.

    Raises:
        UserError: names the fields and the mesh.
    """
    pieces = row_shards(mesh)
    if rows % (parts * pieces):
        parted = f" in {parts} parts (config.micro_batches)" if parts > 1 else ""
        raise UserError(
            f"config.{field}: {rows} rows{parted} can't be split evenly over the mesh ({describe_mesh(mesh)}): each part takes "
            f"multiples of data x fsdp = {pieces}; change config.{field}, config.micro_batches or config.mesh"
        )


def parameter_tree_shardings(config: InternVLConfig, mesh: Mesh) -> Parameters:
    """Where each parameter lives, as a tree like the parameters."""
    model = nnx.eval_shape(lambda: InternVL(config, rngs=nnx.Rngs(0)))
    return traverse_util.unflatten_dict(parameter_shardings(model, mesh))


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`, all else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " b"]:
    """Which rows of a batch this host's devices hold, ascending."""
    indices = rows_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in indices]))


def put_rows(mesh: Mesh, tree: Any) -> Any:
    """Arrays split over the mesh from this host's rows [b, ...] of each, in the order of `local_rows`."""
    sharding = rows_sharding(mesh)

    def put(x: np.ndarray) -> Array:
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        per_device = len(x) // _local_shards(mesh)
        rows = per_device * row_shards(mesh)
        place = {row: i for i, row in enumerate(local_rows(mesh, rows))}

        def block(index):
            start = place[index[0].indices(rows)[0]]
            return x[start : start + per_device]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, block)

    return jax.tree.map(put, tree)


def take_local(array: Array) -> np.ndarray:
    """This host's rows of an array that is split by rows, in the order of `local_rows`."""
    blocks = {shard.index[0].indices(len(array))[0]: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(blocks[start].data) for start in sorted(blocks)])


def gather_rows(mesh: Mesh, tree: Any) -> Any:
    """All hosts' rows on every host, in the order of the batch, from each host's own [b, ...]."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), _everywhere(mesh)(put_rows(mesh, tree)))


def select_rows(mesh: Mesh, tree: Any, rows: Int[np.ndarray, " R"]) -> Any:
    """Some rows of arrays that are split by rows, without moving any between devices.

    Args:
        mesh: the arrays' own.
        tree: of arrays [B, ...].
        rows: as many of each device's rows, device by device (`state.part_rows`).
    """
    per_device = len(jax.tree.leaves(tree)[0]) // row_shards(mesh)
    mine = local_rows(mesh, len(rows))
    return _select(mesh)(tree, put_rows(mesh, (rows % per_device).astype(np.int32)[mine]))


@functools.cache
def _local_shards(mesh: Mesh) -> int:
    return len(local_rows(mesh, row_shards(mesh)))


@functools.cache
def _everywhere(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.cache
def _select(mesh: Mesh):
    spec = PartitionSpec(BATCH_AXES)

    def select(tree, rows):
        return jax.tree.map(lambda x: x[rows], tree)

    return jax.jit(jax.shard_map(select, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
