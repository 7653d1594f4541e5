"""Where a run's numbers go: metrics.jsonl, one whole line a logged step, and TensorBoard events."""

import json
from typing import Any

import numpy as np
from etils import epath

from aesthetic_jax.files import in_object_store, write_whole


def truncate(workdir: str, step: int) -> None:
    """Drops what was logged after `step`: a run resumed from there logs it again."""
    file = epath.Path(workdir) / "metrics.jsonl"
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):  # a line cut off by a kill
            break
        kept.append(line)
    write_whole(file, "".join(kept))


class MetricsWriter:
    """Appends to metrics.jsonl and to TensorBoard."""

    def __init__(self, workdir: str):
        from tensorboardX import SummaryWriter

        self._file = epath.Path(workdir) / "metrics.jsonl"
        self._text = None
        if in_object_store(workdir):  # there the whole file is written each time
            self._text = self._file.read_text() if self._file.exists() else ""
        self._events = SummaryWriter(workdir)

    def write(self, step: int, metrics: dict[str, Any]) -> dict[str, float]:
        """Writes one step's metrics; numbers that are not finite become null in the JSON."""
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        line = {"step": step} | {name: value if np.isfinite(value) else None for name, value in values.items()}
        text = json.dumps(line) + "\n"
        if self._text is None:
            with self._file.open("a") as file:
                file.write(text)
        else:
            self._text += text
            self._file.write_text(self._text)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        return values

    def close(self) -> None:
        """Flushes the events."""
        self._events.close()
