"""A forecast of what hard-case mining can do in a run: visits, revisits and cost.

Mining acts through revisits. A run that is too short for its data shows most samples at most once,
whatever their weights. The forecast says so before the run starts.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from aesthetic_jax.data import hard_cases
from aesthetic_jax.data.hard_cases import DifficultyTable
from aesthetic_jax.data.pipeline import epoch_plan
from aesthetic_jax.training.mining import mining_steps

_SAMPLES = 4000  # most samples to simulate; they stand for a larger data set
_ROUNDS = 200  # most rounds to simulate; they stand for more and shorter ones
_COMPLETIONS = 1_000_000  # count of a sample whose pass rate is assumed: no shrinkage
_FEW_REVISITS = 0.3


class Forecast(NamedTuple):
    """What mining can do in a run."""

    visits: float  # a sample, on average
    revisits: float  # share of the visits that aren't a sample's first
    hard_visits: float  # share of the visits that hard samples get
    hard_samples: float  # share of the samples that are hard: hardness above 0.5
    mining_completions: int
    training_completions: int
    assumption: str  # what is assumed of the samples; "" if a table is given


def forecast_mining(
    config: ConfigDict,
    num_samples: int,
    table: DifficultyTable | None = None,
    dimensions: Int[np.ndarray, " n"] | None = None,
    num_options: int | Int[np.ndarray, " n"] = 4,
) -> Forecast:
    """Simulates the rounds of a run, with samples and round length scaled down alike.

    Pass rates stay as they are at the start, and no sample rests. In `online` mode without a table,
    a sample's pass rate is the prior until its first visit.

    Args:
        config: a GRPO config whose `hard_cases.mode` isn't "off".
        num_samples: samples n of the train split.
        table: table that the run starts with; None: a quarter of the samples is hard, the others
            are always solved.
        dimensions: each sample's dimension as a small number.
        num_options: options of each sample.
    """
    chosen = np.random.default_rng(0).permutation(num_samples)[:_SAMPLES]
    if dimensions is not None:
        dimensions = dimensions[chosen]
    options = np.broadcast_to(num_options, num_samples)[chosen]
    settings = config.hard_cases.copy_and_resolve_references().unlock()
    settings.rest_after_completions = 0
    hard, assumption = np.arange(len(chosen)) % 4 == 0, ""
    if table is None:
        rate, assumption = _assumed_rate(settings, options)
        known = _table_of(np.where(hard, rate, 1.0))
    else:
        known = DifficultyTable(*(x[chosen] for x in table))
        hard = hard_cases.hardness(known, settings, dimensions, options) > 0.5
    visits = _simulate(config, settings, known, (dimensions, options), len(chosen) / num_samples)
    total = max(int(visits.sum()), 1)
    again = math.ceil(settings.mine_probe * num_samples)
    mined = [
        num_samples if step == settings.mine_step else again
        for step in mining_steps(settings, config.num_steps)
    ]
    return Forecast(
        visits=config.num_steps * config.batch_size / num_samples,
        revisits=float(1 - (visits > 0).sum() / total),
        hard_visits=float(visits[hard].sum() / total),
        hard_samples=float(hard.mean()),
        mining_completions=sum(mined) * settings.mine_rollouts,
        training_completions=config.num_steps * config.batch_size * config.grpo.num_generations,
        assumption=assumption,
    )


def describe(forecast: Forecast) -> str:
    """One line about a forecast; it begins with WARNING where few visits are revisits."""
    few = forecast.revisits < _FEW_REVISITS
    parts = [
        f"{forecast.visits:.2f} visits a sample, {forecast.revisits:.0%} of them revisits",
        f"hard samples, {forecast.hard_samples:.0%} of the data, get {forecast.hard_visits:.0%} "
        "of the visits",
        f"mining samples {forecast.mining_completions:,} completions beside training's "
        f"{forecast.training_completions:,}",
    ]
    if forecast.assumption:
        parts.append(f"assumed: {forecast.assumption}")
    if few:
        parts.append("mining acts through revisits; raise num_steps")
    return ("WARNING: " if few else "") + "hard-case mining: " + "; ".join(parts)


def _assumed_rate(settings: Any, options: Int[np.ndarray, " n"]) -> tuple[Any, str]:
    """Pass rates of hard samples, and words for the assumption."""
    always = "the others are always solved"
    if settings.weighting == "variance":
        return 0.5, f"a quarter of the samples is solved half of the time, {always}"
    return hard_cases.chance(options), f"a quarter of the samples is solved by chance, {always}"


def _table_of(rates: np.ndarray) -> DifficultyTable:
    count = np.full(len(rates), _COMPLETIONS, np.int32)
    num_exact = np.rint(rates * _COMPLETIONS).astype(np.int32)
    return DifficultyTable(rates, count, np.full(len(rates), -1, np.int32), num_exact)


def _simulate(
    config: ConfigDict,
    settings: Any,
    known: DifficultyTable,
    facts: tuple[Int[np.ndarray, " n"] | None, Int[np.ndarray, " n"]],
    scale: float,
) -> Int[np.ndarray, " n"]:
    """Visits of each sample over the run.

    Args:
        settings: the config's `hard_cases`.
        known: the difficulty of n samples.
        facts: their dimensions and numbers of options.
        scale: n over the samples of the run.
    """
    size = len(known.count)
    first = settings.mine_step if settings.mode == "two_stage" else settings.round_steps
    first = 0 if settings.table else min(first, config.num_steps)
    steps = config.num_steps - first
    visits = np.zeros(size, np.int64)
    if shuffled := round(first * config.batch_size * scale):
        visits += np.bincount(epoch_plan(0, 0, np.arange(size), shuffled), minlength=size)
    last_seen = np.where(visits > 0, 0, -1).astype(np.int32)
    unknown = hard_cases.init_table(size, settings.prior)
    finds_out = settings.mode == "online" and not settings.table
    rng = np.random.default_rng(0)
    num_rounds = min(math.ceil(steps / settings.round_steps), _ROUNDS)
    planned = round(steps * config.batch_size * scale)
    for number in range(num_rounds):
        start, end = (planned * x // num_rounds for x in (number, number + 1))
        settings.plan_length = end - start
        table = known
        if finds_out:
            seen: Bool[np.ndarray, " n"] = last_seen >= 0
            table = DifficultyTable(
                *(np.where(seen, a, b) for a, b in zip(known, unknown, strict=True))
            )
        drawn = hard_cases.draw_visits(rng, table._replace(last_seen=last_seen), settings, *facts)
        visits += drawn
        last_seen = np.where(drawn > 0, number + 1, last_seen).astype(np.int32)
    return visits
