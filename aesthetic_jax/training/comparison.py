"""Differences between methods, read from their predictions, for `report` and `sweep`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from aesthetic_jax.errors import UserError
from aesthetic_jax.rl.paired import Difference, PairedRun, compare_runs, pair_run

Row = dict[str, Any]  # of predictions.jsonl


def read_predictions(folder: Any) -> list[Row]:
    """The rows of a folder's predictions.jsonl.

    Raises:
        UserError: the file is missing or broken.
    """
    file = epath.Path(folder) / "predictions.jsonl"
    command = f"aesthetic-jax evaluate --out={folder}"
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; run {command} first") from None
    except ValueError as error:
        raise UserError(f"{file}: is no JSON lines ({error}); run {command} again") from None


def compare_methods(folders: Mapping[str, Sequence[Any]], against: str) -> dict[str, Any]:
    """Differences in exact match between one method and each of the others.

    Args:
        folders: for each method, the folder of each run's predictions.jsonl. Runs at the same
            position have the same checkpoint and seed.
        against: name of the method that the others are compared with.

    Returns:
        {method: {"against", "overall": {"value", "low", "high"}, "dimensions": {name: as
        overall}}} with shares in [-1, 1] and 95 % intervals, as `paired_difference` makes them.

    Raises:
        UserError: names the file whose questions differ from those of `against`.
    """
    rows = {name: list(map(read_predictions, places)) for name, places in folders.items()}
    differences = {}
    for name, places in folders.items():
        if name == against:
            continue
        runs = [
            _pair(*pair)
            for pair in zip(places, rows[name], folders[against], rows[against], strict=True)
        ]
        try:
            results = compare_runs(runs)
        except ValueError as error:
            mend = "give every seed the same questions, or each its own"
            raise UserError(f"{places[0]}/predictions.jsonl: {error}; {mend}") from None
        entries = {x: _entry(difference) for x, difference in results.items()}
        overall = entries.pop("overall")
        differences[name] = {"against": against, "overall": overall, "dimensions": entries}
    return differences


def _pair(ours: Any, our_rows: list[Row], theirs: Any, their_rows: list[Row]) -> PairedRun:
    try:
        return pair_run(our_rows, their_rows)
    except ValueError as error:
        raise UserError(
            f"{ours}/predictions.jsonl: {error} in {theirs}; evaluate both on the same split"
        ) from None


def _entry(difference: Difference) -> dict[str, float]:
    """The difference and its 95 % interval, clipped to [-1, 1]."""
    low, high = max(-1.0, difference.low), min(1.0, difference.high)
    return {"value": difference.value, "low": low, "high": high}
