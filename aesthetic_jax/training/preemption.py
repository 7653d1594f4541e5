"""SIGTERM: the notice that a machine is about to be taken away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notices() -> Iterator[Callable[[int], bool]]:
    """Inside, SIGTERM ends nothing by itself.

    Yields:
        (step) -> whether the run is to stop behind this step. To be called by every host behind every step: JAX's preemption
        service passes a notice that one of them gets to all, and they agree on a step that none has passed.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    noticed = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
    try:
        yield lambda _: noticed.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
