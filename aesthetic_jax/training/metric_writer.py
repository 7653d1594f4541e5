"""A run's metrics: metrics.jsonl, TensorBoard events, and the throughput meter."""

import json
import time
from typing import Any

import numpy as np
from etils import epath

from aesthetic_jax.files import in_object_store, write_whole
from aesthetic_jax.training.step import Work


def drop_metrics_after(workdir: str, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, which a run that resumes there logs again."""
    file = epath.Path(workdir) / "metrics.jsonl"
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):  # half a line, left by a kill
            break
        kept.append(line)
    write_whole(file, "".join(kept))


class MetricWriter:
    """Appends one line per logged step to metrics.jsonl, and scalars to TensorBoard."""

    def __init__(self, workdir: str):
        from tensorboardX import SummaryWriter

        self._file = epath.Path(workdir) / "metrics.jsonl"
        self._text = None
        if in_object_store(workdir):  # can't append: the whole file is written each time
            self._text = self._file.read_text() if self._file.exists() else ""
        self._events = SummaryWriter(workdir)

    def write(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes one step's metrics; in the JSON, numbers that are not finite become null."""
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        finite = {name: x if np.isfinite(x) else None for name, x in values.items()}
        line = json.dumps({"step": step} | finite) + "\n"
        if self._text is None:
            with self._file.open("a") as file:
                file.write(line)
        else:
            self._text += line
            self._file.write_text(self._text)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        return values

    def close(self) -> None:
        """Flushes the TensorBoard events."""
        self._events.close()


class Throughput:
    """Throughput meter: tokens/s, model FLOP/s, MFU, and seconds per step."""

    def __init__(self, peak_flops: float):
        self._peak_flops = peak_flops
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._steps, self._input_wait, self._tokens, self._flops = 0, 0.0, 0.0, 0.0

    def add(self, input_wait: float, work: Work) -> None:
        """Counts a step; `input_wait` is the seconds that it waited for its batch."""
        self._steps += 1
        self._input_wait += input_wait
        self._tokens += work.tokens
        self._flops += work.flops

    def report(self) -> dict[str, float]:
        """Metrics of the steps since the last report: per step, and per second."""
        elapsed = time.perf_counter() - self._since
        metrics = {
            "step_s": elapsed / self._steps,
            "input_wait_s": self._input_wait / self._steps,
            "tokens_per_s": self._tokens / elapsed,
            "model_flops_per_s": self._flops / elapsed,
            "time_mfu": self._flops / elapsed / self._peak_flops,
        }
        self._restart()
        return metrics
