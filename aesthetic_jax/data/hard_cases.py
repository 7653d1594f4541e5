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
from scipy.special import bdtrc

from aesthetic_jax.data.plan_order import order_visits

_TINY = np.finfo(np.float64).tiny
_LAST = 2.0**32  # added to a sort key: larger than every step
_WHOLE = 1e-8  # visits due this close below a whole number are whole; rounding errors are smaller
_SIGNIFICANCE = 0.05  # level of the test against lucky guesses
_SHRINKAGE = 4  # weight of a dimension's pass rate in a sample's, in completions


class DifficultyTable(NamedTuple):
    """Difficulty of each of n samples; the same on every host."""

    pass_rate: Float[np.ndarray, " n"]  # moving average of the share of exact answers, float64
    count: Int[np.ndarray, " n"]  # completions sampled, int32; 0: never visited
    last_seen: Int[np.ndarray, " n"]  # step of the last visit, int32; -1: never
    num_exact: Int[np.ndarray, " n"]  # exact answers among `count` completions, int32


def init_table(n: int, prior: float = 0.5) -> DifficultyTable:
    """A table of n unvisited samples with pass rate `prior`."""
    return DifficultyTable(
        np.full(n, prior), np.zeros(n, np.int32), np.full(n, -1, np.int32), np.zeros(n, np.int32)
    )


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
    pass_rate, count, last_seen, num_exact = (x.copy() for x in table)
    for row in np.lexsort((exact, indices)):
        sample = indices[row]
        kept = config.decay if count[sample] else 0.0
        pass_rate[sample] = kept * pass_rate[sample] + (1 - kept) * exact[row]
        count[sample] += completions
        num_exact[sample] += round(float(exact[row]) * completions)
    last_seen[indices] = step
    return DifficultyTable(pass_rate, count, last_seen, num_exact)


def chance(num_options: int | Int[np.ndarray, " n"]) -> float | Float[np.ndarray, " n"]:
    """Probability that a random answer, any subset of the options, is exactly right."""
    return np.exp2(-np.asarray(num_options, np.float64))


def hardness(
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
    num_options: int | Int[np.ndarray, " n"] = 4,
) -> Float[np.ndarray, " n"]:
    """Hardness of samples, in [0, 1], by `config.weighting`.

    - "failure": (1 - pass rate) ** `config.power`.
    - "threshold": 1 below the pass rate `config.hard_below`, else 0.
    - "variance": 4 q (1 - q), with q the pass rate corrected for guessing: 1 where q is 1/2, 0
      where q is 0 or 1. The pass rate is here num_exact over count, shrunk towards the rate of the
      sample's dimension, or of the whole table without `dimensions`.

    Args:
        table: table of n samples.
        config: `hard_cases` config.
        dimensions: each sample's dimension as a small number.
        num_options: options of each sample.
    """
    if config.weighting == "threshold":
        return (table.pass_rate < config.hard_below).astype(np.float64)
    if config.weighting == "failure":
        failure = 1 - table.pass_rate
        # The last digits of a power differ between processors; plans must not.
        return failure if config.power == 1 else np.round(failure**config.power, 9)
    groups = np.zeros(len(table.count), np.int64) if dimensions is None else dimensions
    completions = np.bincount(groups, table.count)
    right = np.bincount(groups, table.num_exact)
    rates = np.where(completions > 0, right / np.maximum(completions, 1), config.prior)
    shrunk = (table.num_exact + _SHRINKAGE * rates[groups]) / (table.count + _SHRINKAGE)
    luck = chance(num_options)
    known = np.maximum(0.0, (shrunk - luck) / (1 - luck))
    return 4 * known * (1 - known)


def resting(
    table: DifficultyTable, config: Any, num_options: int | Int[np.ndarray, " n"] = 4
) -> Bool[np.ndarray, " n"]:
    """Which samples rest: those that many completions solve no more often than guesses would.

    A sample rests once it has `config.rest_after_completions` completions (0: none rests) and
    guesses would give as many exact answers with a probability of 5 % or more (one-sided binomial
    test). It rests until `config.rest_steps` steps have passed since its last visit, and is then
    tried again. The newest visit in the table counts as the current step.
    """
    rests = np.zeros(len(table.count), bool)
    if not config.rest_after_completions:
        return rests
    wake = int(table.last_seen.max(initial=-1)) - config.rest_steps
    tried = (table.count >= config.rest_after_completions) & (table.last_seen > wake)
    options = np.broadcast_to(num_options, tried.shape)
    for number in np.unique(options):
        rows = np.flatnonzero(tried & (options == number))
        # Few pairs of counts differ, and the test is slow.
        pairs, pair = np.unique(
            (table.count[rows].astype(np.int64) << 32) + table.num_exact[rows], return_inverse=True
        )
        count, num_exact = pairs >> 32, pairs & (2**32 - 1)
        rests[rows] = (bdtrc(num_exact - 1, count, chance(int(number))) >= _SIGNIFICANCE)[pair]
    return rests


def sample_weights(
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
    num_options: int | Int[np.ndarray, " n"] = 4,
) -> Float[np.ndarray, " n"]:
    """Weights floor + (1 - floor) * hardness; 0 for resting samples unless all rest.

    The floor is `config.floor`, or 1 / `config.oversampling` if that is above 0: a sample of
    hardness 1 then weighs that many times as much as one of hardness 0. Arguments as in `hardness`.
    """
    floor = 1 / config.oversampling if config.oversampling else config.floor
    weights = floor + (1 - floor) * hardness(table, config, dimensions, num_options)
    np.maximum(weights, _TINY, out=weights)
    rests = resting(table, config, num_options)
    if not rests.all():
        weights[rests] = 0.0
    return weights


def make_plan(
    seed: int,
    round_index: int,
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
    num_options: int | Int[np.ndarray, " n"] = 4,
) -> Int[np.ndarray, " R"]:
    """Sample indices of one round, R = `config.plan_length`, in order.

    `draw_visits` decides how often each sample comes, `order_visits` in which order. A batch is
    R // `config.round_steps` samples, at least 1. Repeats stand at least `config.repeat_distance`
    batches apart where the round has room.

    Args:
        seed: the run's seed.
        round_index: from 0.
        table: table of n samples.
        config: `hard_cases` config.
        dimensions: each sample's dimension as a small number.
        num_options: options of each sample.
    """
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, round_index], np.uint64)))
    visits = draw_visits(rng, table, config, dimensions, num_options)
    batch_size = max(1, config.plan_length // config.round_steps)
    return order_visits(rng, visits, batch_size, config.repeat_distance)


def draw_visits(
    rng: np.random.Generator,
    table: DifficultyTable,
    config: Any,
    dimensions: Int[np.ndarray, " n"] | None = None,
    num_options: int | Int[np.ndarray, " n"] = 4,
) -> Int[np.ndarray, " n"]:
    """How often each sample comes in a plan; the sum is R = `config.plan_length`.

    The coverage quota is ceil(R * `config.coverage_quota`) visits. The others are due to samples in
    proportion to their weights. Each sample gets the floor or the ceiling of its due, by systematic
    resampling (Carpenter, Clifford and Fearnhead, 1999). The quota goes to the least recently seen
    of the samples not drawn, so every sample that doesn't rest comes at least once in any
    ceil(n / quota) rounds. Drawn samples get quota visits only where no others are left. Resting
    samples come only if all rest.

    Args:
        rng: source of the draw.
        table, config, dimensions, num_options: as in `make_plan`. With
            `config.balance_dimensions`, the weights of each dimension have the same sum.
    """
    weights = sample_weights(table, config, dimensions, num_options)
    rests = weights == 0
    if dimensions is not None and config.balance_dimensions:
        sums = np.bincount(dimensions, weights)
        weights /= np.maximum(sums, _TINY)[dimensions]
    quota = math.ceil(config.plan_length * config.coverage_quota)
    visits = _systematic(rng, weights, config.plan_length - quota)
    age = rng.random(len(visits))  # breaks ties
    age += table.last_seen
    age[visits > 0] += _LAST
    age[rests] = np.inf
    passes, rest = divmod(quota, len(visits) - int(rests.sum()))
    visits[_smallest(age, rest)] += 1
    visits[~rests] += passes
    return visits


def _systematic(
    rng: np.random.Generator, weights: Float[np.ndarray, " n"], total: int
) -> Int[np.ndarray, " n"]:
    """`total` visits; each sample gets the floor or the ceiling of what it is due by its weight.

    Whole visits are given first. The fractions that are left lie end to end on a line, in random
    order. Points one stride apart on this line choose the samples that get one more visit.
    """
    # cumsum, because np.sum adds in a different order on different processors.
    due = weights / np.cumsum(weights)[-1]
    due *= total
    visits = np.floor(due + _WHOLE).astype(np.int64)
    order = rng.permutation(len(weights))
    ends = np.cumsum(np.maximum(due - visits, 0.0)[order])
    missing = total - int(visits.sum())
    if missing:
        offset = float(rng.random(dtype=np.float32))  # 24 bits: below 1 after rounding, too
        points = (np.arange(missing) + offset) * (ends[-1] / missing)
        visits[order[np.searchsorted(ends, points, side="right")]] += 1
    return visits


def _smallest(keys: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " {count}"]:
    """Positions of the `count` smallest keys, the first of equal ones.

    np.argpartition alone would choose among equal keys differently on different processors.
    """
    if not count:
        return np.zeros(0, np.int64)
    bound = np.partition(keys, count - 1)[count - 1]
    below = np.flatnonzero(keys < bound)
    return np.concatenate([below, np.flatnonzero(keys == bound)[: count - len(below)]])


def hardest(
    seed: int,
    step: int,
    weights: Float[np.ndarray, " n"],
    count: int,
) -> Int[np.ndarray, " {count}"]:
    """The `count` samples of the largest weights, ascending; ties at random by (seed, step)."""
    ties = np.random.default_rng((seed, step)).permutation(len(weights))
    return np.sort(np.lexsort((ties, -weights))[:count])


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
