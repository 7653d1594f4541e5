"""The device mesh, and moving rows of a batch between hosts and devices.

Every host runs the same program. Rows of a batch are split over the axes `data` and `fsdp`. A host
loads the rows that its own devices hold. Values that all hosts need (lengths, rewards) are gathered
once, in batch order.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.sharding import BATCH_AXES

AXES = ("data", "fsdp", "tensor")


def mesh_shape(settings: Any, devices: int, slices: int = 1) -> dict[str, int]:
    """Sizes of the mesh axes.

    Args:
        settings: a config's `mesh`: `data`, `fsdp` and `tensor`; 0 or -1 means all remaining
            devices. If `data` and another axis are both open, `data` is the number of slices.
        devices: number of devices in all slices.
        slices: groups of devices with an interconnect of their own.

    Raises:
        UserError: the sizes don't multiply to the devices, or `data` doesn't span the slices.
    """
    sizes = {axis: settings[axis] for axis in AXES}
    if sizes["data"] <= 0 and min(sizes["fsdp"], sizes["tensor"]) <= 0:
        sizes["data"] = slices
    given = {axis: size for axis, size in sizes.items() if size > 0}
    open_axes = [axis for axis in AXES if axis not in given]
    if len(open_axes) > 1:
        raise UserError("config.mesh: leaves both fsdp and tensor open; give one of them a size")
    product = int(np.prod(list(given.values())))
    if devices % product or (not open_axes and product != devices):
        shown = ", ".join(f"{axis}={size}" for axis, size in given.items())
        raise UserError(
            f"config.mesh: {shown} does not fit {devices} devices; change the sizes, or leave one "
            "open with -1"
        )
    sizes |= dict.fromkeys(open_axes, devices // product)
    if sizes["data"] % slices:
        raise UserError(
            f"config.mesh.data: is {sizes['data']}, and the devices are {slices} slices; give a "
            "multiple, or 0 for one a slice"
        )
    return sizes


def make_mesh(settings: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config's `mesh` over all devices, or those given; `data` spans the slices.

    Args:
        devices: as `jax.devices()` gives them.

    Raises:
        UserError: see `mesh_shape`.
    """
    devices = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = mesh_shape(settings, len(devices), slices)
    per_slice = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    if slices == 1:
        grid = mesh_utils.create_device_mesh(per_slice, devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(
            per_slice, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    # Auto: the compiler chooses shardings that no rule gives.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def describe_mesh(mesh: Mesh | AbstractMesh) -> str:
    """A mesh in words, for messages."""
    return ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards that the rows of a batch are split into."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def check_rows(mesh: Mesh | AbstractMesh, field: str, rows: int, microbatches: int = 1) -> None:
    """Refuses a batch that can't be split evenly over a mesh.

    Args:
        field: config field that sets the rows, without `config.`.
        rows: rows of a batch.
        microbatches: `config.micro_batches`.

    Raises:
        UserError: names the fields and the mesh.
    """
    shards = row_shards(mesh)
    if rows % (microbatches * shards):
        split = f" in {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"config.{field}: {rows} rows{split} can't be split evenly over the mesh "
            f"({describe_mesh(mesh)}): each microbatch takes multiples of data x fsdp = {shards}; "
            f"change config.{field}, config.micro_batches or config.mesh"
        )


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over `data` and `fsdp`; all other axes replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, rows: int) -> Int[np.ndarray, " b"]:
    """Indices of a batch's rows that this host's devices hold, ascending."""
    indices = rows_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in indices]))


def put_rows(mesh: Mesh, tree: Any) -> Any:
    """Arrays [B, ...] on the mesh, from this host's rows [b, ...] in the order of `local_rows`."""
    sharding = rows_sharding(mesh)

    def put(x: np.ndarray) -> Array:
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        per_device = len(x) // _num_local_shards(mesh)
        rows = per_device * row_shards(mesh)
        local_index = {row: i for i, row in enumerate(local_rows(mesh, rows))}

        def block(index):
            start = local_index[index[0].indices(rows)[0]]
            return x[start : start + per_device]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, block)

    return jax.tree.map(put, tree)


def take_local(array: Array) -> np.ndarray:
    """This host's rows of an array that is split by rows, in the order of `local_rows`."""
    blocks = {shard.index[0].indices(len(array))[0]: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(blocks[start].data) for start in sorted(blocks)])


def gather_rows(mesh: Mesh, tree: Any) -> Any:
    """All hosts' rows [B, ...] on every host, from each host's own rows [b, ...]."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    replicated = _replicate(mesh)(put_rows(mesh, tree))
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), replicated)


def select_rows(mesh: Mesh, tree: Any, rows: Int[np.ndarray, " R"]) -> Any:
    """Selects rows of arrays [B, ...] that are split by rows; no row changes its device.

    Args:
        rows: indices, device by device, equally many per device (from `update.microbatch_rows`).
    """
    per_device = len(jax.tree.leaves(tree)[0]) // row_shards(mesh)
    local_indices = local_rows(mesh, len(rows))
    chosen = (rows % per_device).astype(np.int32)[local_indices]
    return _select(mesh)(tree, put_rows(mesh, chosen))


@functools.cache
def _num_local_shards(mesh: Mesh) -> int:
    return len(local_rows(mesh, row_shards(mesh)))


@functools.cache
def _replicate(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.cache
def _select(mesh: Mesh):
    spec = PartitionSpec(BATCH_AXES)

    def select(tree, rows):
        return jax.tree.map(lambda x: x[rows], tree)

    return jax.jit(jax.shard_map(select, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
