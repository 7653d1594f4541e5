"""Devices of TPU slices without the hardware, as the TPU compiler describes them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from jax.experimental import topologies

from aesthetic_jax.errors import UserError


def describe_devices(topology: str, slices: int = 1) -> list[Any]:
    """Devices to build a mesh from and to compile for.

    Args:
        topology: kind and shape of a slice, such as v5e:4x4.
        slices: number of such slices.

    Raises:
        UserError: the compiler refuses the topology.
    """
    options = {"num_slices": slices} if slices > 1 else {}
    try:
        with _without_stderr():
            return topologies.get_topology_desc(
                platform="tpu", topology_name=topology, **options
            ).devices
    except Exception as error:  # XLA refuses an unknown name with many types of error
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"--topology={topology}: the TPU compiler refuses it ({reason}); "
            "give a kind and a shape, such as v5e:4x4"
        ) from None


def count_chips(devices: list[Any]) -> int:
    """Number of chips; on some kinds a chip's two cores are two devices."""
    return len({(getattr(device, "slice_index", 0), *device.coords) for device in devices})


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Mutes file descriptor 2, where libtpu complains that this machine has no TPU."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
