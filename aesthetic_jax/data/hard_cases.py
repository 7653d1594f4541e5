"""Hard-case mining: a table of how hard each sample is, and immutable plans that show the hard ones more often.

A round is a fixed number of steps. Its plan, the order of samples, is a pure function of (seed, round, table, config), made
before the round begins; nothing in a running iterator ever changes. Difficulty is the share of exactly right answers, never
partial credit.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_TINY = np.finfo(np.float64).tiny
_LAST = 2.0**32  # behind every step and every log weight


class DifficultyTable(NamedTuple):
    """What is known of each of n samples, the same on every host."""

    pass_rate: Float[np.ndarray, " n"]  # moving average of the share of exact answers, float64
    count: Int[np.ndarray, " n"]  # visits, int32
    last_seen: Int[np.ndarray, " n"]  # step of the last visit, int32; -1: never


def init_table(n: int, prior: float = 0.5) -> DifficultyTable:
    """A table of n samples not seen yet, taken to have the pass rate `prior`."""
    return DifficultyTable(np.full(n, prior), np.zeros(n, np.int32), np.full(n, -1, np.int32))


def update_table(
    table: DifficultyTable, indices: Int[np.ndarray, " B"], exact: Float[np.ndarray, " B"], step: int, config: Any
) -> DifficultyTable:
    """The table after a batch.

    A first visit replaces the prior; later ones move the average, of which `config.decay` (default 0.5) stays. Rows are applied
    in the order of sample and value, so the result is the same however hosts divided the batch.
    """
    decay = getattr(config, "decay", 0.5)
    pass_rate, count, last_seen = (x.copy() for x in table)
    for place in np.lexsort((exact, indices)):
        index = indices[place]
        kept = decay if count[index] else 0.0
        pass_rate[index] = kept * pass_rate[index] + (1 - kept) * exact[place]
        count[index] += 1
    last_seen[indices] = step
    return DifficultyTable(pass_rate, count, last_seen)


def hardness(pass_rate: Float[np.ndarray, " n"], config: Any) -> Float[np.ndarray, " n"]:
    """How hard samples are, in [0, 1], as `config.weighting` (default "continuous") has it.

    "continuous": (1 - pass rate) ** power (default 1). "threshold": 1 below `hard_below` (default 0.5), else 0.
    """
    if getattr(config, "weighting", "continuous") == "threshold":
        return (pass_rate < getattr(config, "hard_below", 0.5)).astype(np.float64)
    power = getattr(config, "power", 1.0)
    return 1 - pass_rate if power == 1 else (1 - pass_rate) ** power


def left_out(table: DifficultyTable, config: Any) -> Bool[np.ndarray, " n"]:
    """Samples that were never solved in `config.band_visits` visits (default 0: none are left out).

    They rest until `band_rest` steps (default 1000) have passed since their last visit, and are then looked at once more; time
    is that of the newest visit in the table.
    """
    visits = getattr(config, "band_visits", 0)
    if not visits:
        return np.zeros(len(table.count), bool)
    rested = int(table.last_seen.max(initial=-1)) - getattr(config, "band_rest", 1000)
    return (table.count >= visits) & (table.pass_rate == 0) & (table.last_seen > rested)


def make_plan(
    seed: int,
    round_index: int,
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " R"]:
    """Sample indices of one round, `config.plan_length` of them; no index twice in a plan that is not longer than the data.

    A share `config.coverage_quota` goes to the samples that were not seen for longest: with R < n every sample comes at
    least once in any ceil(n / ceil(R * quota)) rounds. The rest is drawn without replacement, by the largest of Gumbel noise
    plus log weight (Efraimidis and Spirakis), with weights floor + (1 - floor) * hardness. `config.oversampling`
    (default 0) above 0 takes the floor's place: the hardest are drawn that many times as often as the easiest. A plan that
    is longer than the data is whole passes and such a rest. What is `left_out` comes into the rest only where nothing else is
    left.

    Args:
        dimensions: a small number for each sample's dimension. Where given, and `config.balance_dimensions` (default False), the
            weights of each dimension sum to the same.
    """
    size = len(table.pass_rate)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, round_index], np.uint64)))
    passes, rest = divmod(config.plan_length, size)
    covered = math.ceil(rest * config.coverage_quota)
    resting = left_out(table, config)

    age = rng.random(size)  # ties are broken at random
    age += table.last_seen
    age[resting] += _LAST
    oldest = _smallest(age, covered)

    oversampling = getattr(config, "oversampling", 0)
    floor = 1 / oversampling if oversampling else config.floor
    weights = hardness(table.pass_rate, config)
    weights *= 1 - floor
    weights += floor
    np.maximum(weights, _TINY, out=weights)
    sums = None
    if dimensions is not None and getattr(config, "balance_dimensions", False):
        sums = np.bincount(dimensions, np.where(resting, 0.0, weights))
    keys = -rng.gumbel(size=size)
    keys -= np.log(weights, out=weights)
    if sums is not None:
        keys += np.log(np.maximum(sums, _TINY))[dimensions]
    keys[resting] += _LAST
    keys[oldest] = np.inf
    drawn = _smallest(keys, rest - covered)
    plan = np.concatenate([np.tile(np.arange(size), passes), oldest, drawn])
    return rng.permutation(plan).astype(np.int32)


def _smallest(keys: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " count"]:
    """Where the `count` smallest keys are, the first of equal ones; argpartition's choice depends on the processor."""
    if not count:
        return np.zeros(0, np.int64)
    bound = np.partition(keys, count - 1)[count - 1]
    below = np.flatnonzero(keys < bound)
    return np.concatenate([below, np.flatnonzero(keys == bound)[: count - len(below)]])


def is_hard(table: DifficultyTable, indices: Int[np.ndarray, " B"], below: float) -> Bool[np.ndarray, " B"]:
    """Whether samples have been seen and are solved less often than `below`."""
    return (table.count[indices] > 0) & (table.pass_rate[indices] < below)


def table_statistics(table: DifficultyTable) -> dict[str, float]:
    """The table in a few numbers for the metrics; shares of all samples, and the mean pass rate of those seen."""
    seen = table.count > 0
    return {
        "hard_cases/unseen": 1 - seen.mean(),
        "hard_cases/pass_rate": table.pass_rate[seen].mean() if seen.any() else 0.0,
        "hard_cases/never_solved": (seen & (table.pass_rate < 1e-3)).mean(),
        "hard_cases/always_solved": (seen & (table.pass_rate > 1 - 1e-3)).mean(),
    }
