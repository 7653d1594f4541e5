"""Hard-case mining: a table of how hard each sample is, and immutable plans that show the hard ones more often.

A round is a fixed number of steps. Its plan, the order of samples, is a pure function of (seed, round, table, config), made
before the round begins; nothing in a running iterator ever changes. Difficulty is the share of exactly right answers, never
partial credit.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


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


def make_plan(seed: int, round_index: int, table: DifficultyTable, config: Any) -> Int[np.ndarray, " R"]:
    """Sample indices of one round, `config.plan_length` of them.

    A share `config.coverage_quota` goes to the samples that were not seen for longest, so that nothing starves. The rest is
    drawn without replacement with weights floor + (1 - floor) (1 - pass rate) ** power (power: default 1), by the largest of
    Gumbel noise plus log weight (Efraimidis and Spirakis). No index comes twice in a plan that is not longer than the
    data; a longer plan is whole passes and such a rest.
    """
    size = len(table.pass_rate)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, round_index], np.uint64)))
    passes, rest = divmod(config.plan_length, size)
    covered = round(rest * config.coverage_quota)

    tie_break = rng.random(size)
    oldest = np.lexsort((tie_break, table.last_seen))[:covered] if covered else np.zeros(0, np.int64)
    weights = config.floor + (1 - config.floor) * (1 - table.pass_rate) ** getattr(config, "power", 1.0)
    keys = rng.gumbel(size=size) + np.log(np.maximum(weights, np.finfo(np.float64).tiny))
    keys[oldest] = -np.inf
    drawn = np.argpartition(keys, size - (rest - covered))[size - (rest - covered) :] if rest > covered else oldest[:0]
    plan = np.concatenate([np.tile(np.arange(size), passes), oldest, drawn])
    return rng.permutation(plan).astype(np.int32)


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
