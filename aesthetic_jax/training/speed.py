"""How fast a run goes."""

import time


class Speed:
    """Counts work and waiting, and says what they come to between two reports."""

    def __init__(self, peak_flops: float):
        self._peak_flops = peak_flops
        self._restart()

    def _restart(self) -> None:
        self._since, self._steps, self._waited, self._tokens, self._flops = time.perf_counter(), 0, 0.0, 0.0, 0.0

    def add(self, waited: float, tokens: float, flops: float) -> None:
        """Counts a step.

        Args:
            waited: seconds that it waited for its batch.
            tokens: of its prompts and completions, each once.
            flops: that its model's arithmetic took, padding and rematerialisation left out.
        """
        self._steps += 1
        self._waited, self._tokens, self._flops = self._waited + waited, self._tokens + tokens, self._flops + flops

    def report(self) -> dict[str, float]:
        """Metrics of the steps since the last report: per step, and per second."""
        spent = time.perf_counter() - self._since
        told = {
            "step_s": spent / self._steps,
            "input_wait_s": self._waited / self._steps,
            "tokens_per_s": self._tokens / spent,
            "model_flops_per_s": self._flops / spent,
            "time_mfu": self._flops / spent / self._peak_flops,
        }
        self._restart()
        return told
