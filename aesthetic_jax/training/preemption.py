"""Preemption: SIGTERM, the notice that a machine is about to be taken away."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def preemption_guard() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM into a flag instead of ending the process.

    Yields:
        `should_stop()`: whether to stop here. Every host must call it equally often. A notice at
        one host reaches all through JAX's preemption service: all hosts agree on one future check;
        that check alone returns True.
    """
    if jax.process_count() > 1:
        checks = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(checks))
        return
    noticed = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
    try:
        yield noticed.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)
