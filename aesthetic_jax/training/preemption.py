"""SIGTERM: the notice that a machine is about to be taken away."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def notices() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM ends nothing by itself.

    Yields:
        Whether to stop here. To be asked by every host, equally often, wherever it can stop: JAX's preemption service passes a
        notice that one of them gets to all, and they agree on a question that none has asked yet. That one alone is answered
        with yes.
    """
    if jax.process_count() > 1:
        questions = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(questions))
        return
    noticed = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: noticed.set())
    try:
        yield noticed.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
