"""The study's endpoints and verdicts, fixed before the runs, and their arithmetic.

Arms and pairs
    Stage 1, exact reward: `failure` and `variance` weighting of online mining against `uniform`
    sampling. 2 SFT checkpoints x 5 seeds: 10 pairs per arm.
    Stage 2, exploratory, as time allows: `two_stage`, `subset`, `paper_hcm`, `per_option`,
    `subset_gated` and `dpa_anneal` against `uniform`. 2 checkpoints x 2 seeds: 4 pairs per arm.
    A run is paired with the run of `uniform` from the same checkpoint with the same seed. All arms
    use equally many completions, mining included, to within one step of 128.
    configs/sweeps/study.py defines the arms. Stage 2 runs its arms in the order above: the first
    three, with `uniform`, separate mining from reward.

Primary endpoint
    Exact match of greedy answers to the 1,200 hard questions of the test, arm less `uniform`, for
    `failure` and for `variance`. p values are adjusted for these two comparisons (Holm). Stage 2 is
    judged by the same endpoint, unadjusted: it can suggest effects but not prove them.

Secondary endpoints, arm less `uniform`, unadjusted
    overall                   exact match on all 2,400 test questions
    easy                      exact match on the 1,200 easy ones; non-inferior if the 95 % interval
                              lies above -1 point
    training_exact            area under the training curve of exact match, as the mean over all
                              completions sampled, mining included. Arms that ask harder questions
                              have a lower one for that reason alone.
    hit_rate                  fact fidelity on the test: share of the images' facts that the chains
                              of thought state, mean over the kinds of facts
    false_alarm_rate          share stated wrongly, likewise
    letters_named_less_right  letters named less letters right, per answered question
    mixed_groups              share of training's groups with both right and wrong completions

Verdicts on exact match, in points (hard and overall)
    gain        the 95 % interval lies above 0, and the mean is 2 points or more; for the primary
                endpoint, the adjusted p value is also 0.05 at most
    no gain     the 90 % interval lies within -2 to +2
    unresolved  anything else, losses included; the interval shows them

Intervals
    Exact match: crossed design over runs and questions (aesthetic_jax/rl/paired.py). The intervals
    cover other questions and seeds, but no other checkpoints. Other endpoints have one number per
    run: Student's interval over the runs' differences.

An interrupted study is judged on its complete pairs, and the report says how many these are. One
pair gives no verdict, because it doesn't show how much training varies. Nothing else is selected or
left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from aesthetic_jax.errors import UserError
from aesthetic_jax.rl.paired import Difference, PairedRun, holm, pair_run, paired_difference
from studylib.measures import MEASURES, Key, Run

BASELINE = "uniform"
PRIMARY_ARMS = ("failure", "variance")  # the family that Holm's correction covers
EXPLORATORY_ARMS = (  # in the order of their runs
    "two_stage",
    "subset",
    "paper_hcm",
    "per_option",
    "subset_gated",
    "dpa_anneal",
)
ARMS = (BASELINE, *PRIMARY_ARMS, *EXPLORATORY_ARMS)
PLANNED_PAIRS = dict.fromkeys(PRIMARY_ARMS, 10) | dict.fromkeys(EXPLORATORY_ARMS, 4)
COMPLETIONS, STEP = 20_480, 128  # of a run; of a step

_GAIN = 0.02  # least mean difference that counts
_MARGIN = 0.01  # of non-inferiority
_LEVEL = 0.05


def check_budget(arms: Mapping[str, Mapping[Key, Run]]) -> None:
    """Checks that every run used the same number of completions, up to one step.

    Raises:
        UserError: names a run that didn't.
    """
    for name, runs in arms.items():
        for (checkpoint, seed), run in runs.items():
            if abs(run.completions - COMPLETIONS) > STEP:
                raise UserError(
                    f"sweep{checkpoint}/seed{seed}/runs/{name}: used {run.completions:,} "
                    f"completions and not {COMPLETIONS:,}; correct configs/sweeps/study.py and "
                    "remove the run"
                )


def compare_arms(
    arms: Mapping[str, Mapping[Key, Run]], types: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Compares every arm with the baseline on all endpoints.

    Args:
        arms: finished runs by checkpoint and seed.
        types: each test question's type.

    Returns:
        {arm: {"pairs", "planned_pairs", "endpoints": {endpoint: {"value", "low", "high", "low_90",
        "high_90", "p_value"}}, "p_adjusted" (stage 1), "verdicts": {"hard", "overall", "easy"}}};
        arms without a pair are left out. None in place of numbers that don't exist.
    """
    compared = {}
    for name in ARMS:
        keys = sorted(arms.get(name, {}).keys() & arms.get(BASELINE, {}).keys())
        if name != BASELINE and keys:
            pairs = [(arms[name][key], arms[BASELINE][key]) for key in keys]
            compared[name] = (len(keys), compare_pairs(pairs, types))
    # An arm without pairs stays in the family: the correction must not depend on what is finished.
    p_values = [compared[x][1]["hard"].p_value if x in compared else 1.0 for x in PRIMARY_ARMS]
    adjusted = dict(zip(PRIMARY_ARMS, holm(p_values), strict=True))
    return {
        name: _result(name, pairs, endpoints, adjusted.get(name))
        for name, (pairs, endpoints) in compared.items()
    }


def compare_pairs(
    pairs: Sequence[tuple[Run, Run]], types: Mapping[str, str]
) -> dict[str, Difference]:
    """All endpoints' differences, the first run of each pair less the second.

    Args:
        pairs: runs that answer the same questions.
        types: each question's type.
    """
    paired = [pair_run(ours.rows, theirs.rows) for ours, theirs in pairs]
    names = np.array([types[question] for question, _, _ in paired[0].questions])
    endpoints = {name: _exact_difference(paired, names == name) for name in ("hard", "easy")}
    endpoints["overall"] = _exact_difference(paired, np.ones(len(names), bool))
    for name in MEASURES:
        values = [np.array([a.measures[name] - b.measures[name]]) for a, b in pairs]
        endpoints[name] = paired_difference(values, same_questions=False)
    return endpoints


def _exact_difference(runs: Sequence[PairedRun], chosen: Bool[np.ndarray, " Q"]) -> Difference:
    return paired_difference([run.differences[chosen] for run in runs], same_questions=True)


def verdict(difference: Difference, p_adjusted: float = 0.0) -> str:
    """ "gain", "no gain" or "unresolved", as defined at the top of this file.

    Args:
        difference: of exact match, as a share.
        p_adjusted: of the primary endpoint.
    """
    if difference.low > 0 and difference.value >= _GAIN and p_adjusted <= _LEVEL:
        return "gain"
    if difference.low_90 >= -_GAIN and difference.high_90 <= _GAIN:
        return "no gain"
    return "unresolved"


def _result(
    name: str, pairs: int, endpoints: Mapping[str, Difference], p_adjusted: float | None
) -> dict[str, Any]:
    """One arm's entry in what `compare_arms` returns."""
    corrected = {} if p_adjusted is None else {"p_adjusted": p_adjusted}
    verdicts = {
        "hard": verdict(endpoints["hard"], *corrected.values()),
        "overall": verdict(endpoints["overall"]),
        "easy": "non-inferior" if endpoints["easy"].low > -_MARGIN else "not shown",
    }
    if pairs == 1:
        verdicts = {"hard": "unresolved", "overall": "unresolved", "easy": "not shown"}
    return {
        "pairs": pairs,
        "planned_pairs": PLANNED_PAIRS[name],
        "endpoints": {endpoint: _finite(x._asdict()) for endpoint, x in endpoints.items()},
        **corrected,
        "verdicts": verdicts,
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: None for infinity and NaN."""
    return {name: float(x) if np.isfinite(x) else None for name, x in numbers.items()}
