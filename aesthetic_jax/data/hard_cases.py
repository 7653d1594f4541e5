"""Hard-case mining: each sample's difficulty, and plans that show hard samples more often.

A round is the steps between two plans: a fixed number, `hard_cases.round_steps`. A round's plan,
the order of its samples, is a pure function of (seed, round, table, config), made before the round
begins; nothing in a running iterator ever changes. Difficulty is the share of exactly right
answers, never partial credit.

`config` is the `hard_cases` section of a config (see aesthetic_jax/training/config.py), with
`plan_length` added.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_TINY = np.finfo(np.float64).tiny
_LAST = 2.0**32  # added to a sort key: larger than every step and every log weight


class DifficultyTable(NamedTuple):
    """Difficulty of each of n samples; the same on every host."""

    pass_rate: Float[np.ndarray, " n"]  # moving average of the share of exact answers, float64
    count: Int[np.ndarray, " n"]  # completions sampled, int32; 0: never visited
    last_seen: Int[np.ndarray, " n"]  # step of the last visit, int32; -1: never


def init_table(n: int, prior: float = 0.5) -> DifficultyTable:
    """A table of n unvisited samples with pass rate `prior`."""
    return DifficultyTable(np.full(n, prior), np.zeros(n, np.int32), np.full(n, -1, np.int32))


def update_table(
    table: DifficultyTable,
    indices: Int[np.ndarray, " B"],
    exact: Float[np.ndarray, " B"],
    step: int,
    config: Any,
    completions: int = 1,
) -> DifficultyTable:
    """The table after a batch.

    A sample's first visit replaces the prior. Later visits move the average, with weight
    `config.decay` on the old value. Rows are applied in the order of (sample, value), so the result
    doesn't depend on how hosts divide the batch.

    Args:
        table: the table before the batch; it isn't modified.
        indices: the batch's samples.
        exact: share of each sample's completions whose answer is exactly right.
        step: number of steps done after the batch.
        config: `hard_cases` config.
        completions: completions sampled per row, G.
    """
    pass_rate, count, last_seen = (x.copy() for x in table)
    for row in np.lexsort((exact, indices)):
        sample = indices[row]
        kept = config.decay if count[sample] else 0.0
        pass_rate[sample] = kept * pass_rate[sample] + (1 - kept) * exact[row]
        count[sample] += completions
    last_seen[indices] = step
    return DifficultyTable(pass_rate, count, last_seen)


def hardness(pass_rate: Float[np.ndarray, " n"], config: Any) -> Float[np.ndarray, " n"]:
    """Hardness of samples, in [0, 1], by `config.weighting`.

    "continuous": (1 - pass rate) ** `config.power`. "threshold": 1 below `config.hard_below`,
    else 0.
    """
    if config.weighting == "threshold":
        return (pass_rate < config.hard_below).astype(np.float64)
    return 1 - pass_rate if config.power == 1 else (1 - pass_rate) ** config.power


def resting(table: DifficultyTable, config: Any) -> Bool[np.ndarray, " n"]:
    """Samples that no completion solved, out of `config.rest_after_completions` or more; 0: none.

    A sample rests until `config.rest_steps` steps have passed since its last visit, and is then
    tried again. The newest visit in the table counts as the current step.
    """
    if not config.rest_after_completions:
        return np.zeros(len(table.count), bool)
    wake = int(table.last_seen.max(initial=-1)) - config.rest_steps
    tried = table.count >= config.rest_after_completions
    return tried & (table.pass_rate == 0) & (table.last_seen > wake)


def make_plan(
    seed: int,
    round_index: int,
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " R"]:
    """Sample indices of one round, R = `config.plan_length`.

    While R <= n, no sample comes twice. A share `config.coverage_quota` of the plan goes to the
    samples not visited for longest, so every sample comes at least once in any
    ceil(n / ceil(R * quota)) rounds. The others are drawn without replacement, as the largest of
    Gumbel noise plus log weight (Efraimidis and Spirakis, 2006). A weight is
    floor + (1 - floor) * hardness. The floor is `config.floor`, or 1 / `config.oversampling` if
    that is above 0: the hardest samples are then drawn that many times as often as the easiest.
    A plan longer than the data is whole passes plus such a plan for the remainder. Resting
    samples enter the remainder only if no others are left.

    Args:
        seed: the run's seed.
        round_index: from 0.
        table: table of n samples.
        config: `hard_cases` config.
        dimensions: each sample's dimension as a small number. If given and
            `config.balance_dimensions` is set, the weights of each dimension have the same sum.
    """
    size = len(table.pass_rate)
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, round_index], np.uint64)))
    passes, remainder = divmod(config.plan_length, size)
    covered = math.ceil(remainder * config.coverage_quota)
    rests = resting(table, config)

    age = rng.random(size)  # breaks ties
    age += table.last_seen
    age[rests] += _LAST
    oldest = _smallest(age, covered)

    floor = 1 / config.oversampling if config.oversampling else config.floor
    weights = hardness(table.pass_rate, config)
    weights *= 1 - floor
    weights += floor
    np.maximum(weights, _TINY, out=weights)
    sums = None
    if dimensions is not None and config.balance_dimensions:
        sums = np.bincount(dimensions, np.where(rests, 0.0, weights))
    keys = -rng.gumbel(size=size)
    keys -= np.log(weights, out=weights)
    if sums is not None:
        keys += np.log(np.maximum(sums, _TINY))[dimensions]
    keys[rests] += _LAST
    keys[oldest] = np.inf
    drawn = _smallest(keys, remainder - covered)
    plan = np.concatenate([np.tile(np.arange(size), passes), oldest, drawn])
    return rng.permutation(plan).astype(np.int32)


def _smallest(keys: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " {count}"]:
    """Positions of the `count` smallest keys, the first of equal ones.

    np.argpartition alone would choose among equal keys differently on different processors.
    """
    if not count:
        return np.zeros(0, np.int64)
    bound = np.partition(keys, count - 1)[count - 1]
    below = np.flatnonzero(keys < bound)
    return np.concatenate([below, np.flatnonzero(keys == bound)[: count - len(below)]])


def is_hard(
    table: DifficultyTable, indices: Int[np.ndarray, " B"], below: float
) -> Bool[np.ndarray, " B"]:
    """Whether samples have been visited and have a pass rate under `below`."""
    return (table.count[indices] > 0) & (table.pass_rate[indices] < below)


def table_statistics(table: DifficultyTable) -> dict[str, float]:
    """Metrics of a table: shares of all samples, and the mean pass rate of the visited ones."""
    seen = table.count > 0
    return {
        "hard_cases/unseen": 1 - seen.mean(),
        "hard_cases/pass_rate": table.pass_rate[seen].mean() if seen.any() else 0.0,
        "hard_cases/never_solved": (seen & (table.pass_rate < 1e-3)).mean(),
        "hard_cases/always_solved": (seen & (table.pass_rate > 1 - 1e-3)).mean(),
    }
