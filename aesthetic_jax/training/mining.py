"""Mining: finds hard cases by rollouts of every sample, or of chosen ones.

A folder of mined samples holds `mining.json` (the settings and a summary), `completions.jsonl` (for
each sample its id, dimension, answer, completions and the share of them that is exactly right) and,
written last, `table.npz` (ids and the difficulty table). Interrupted mining resumes with identical
results.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aesthetic_jax.data.hard_cases import (
    DifficultyTable,
    init_table,
    table_statistics,
    update_table,
)
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import write_whole
from aesthetic_jax.models.internvl import Parameters
from aesthetic_jax.rl.rewards import dpa_reward, parse_answer
from aesthetic_jax.training.answering import (
    Answering,
    Row,
    answer_split,
    claim_folder,
    describe_samples,
    join_parts,
    remove_parts,
    write_json,
)
from aesthetic_jax.training.sampling import Sampler, make_sampler

_OUTPUTS = ("completions.jsonl", "table.npz")
_FIELDS = ("id", "dimension", "answer", "exact", "completions")  # of completions.jsonl
_NOISE = 2**32 - 1  # folded into the run's key: no step has this number


def mining_steps(settings: ConfigDict, num_steps: int) -> range:
    """Steps before which a run mines. One that starts with a table skips the first mining.

    Args:
        settings: the config's `hard_cases`.
        num_steps: steps of the run.
    """
    first, every = settings.mine_step, settings.mine_every
    if settings.mode != "two_stage":
        return range(0)
    steps = range(first, num_steps, every or max(1, num_steps))
    return steps[1:] if settings.table else steps


def make_mining_sampler(
    config: ConfigDict, graph: nnx.GraphDef, preprocessor: Preprocessor, mesh: Mesh, step: int = 0
) -> Sampler:
    """The sampler of GRPO's rollouts, with `hard_cases.mine_rollouts` completions per prompt.

    Args:
        step: step of the run; each step has its own noise.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), _NOISE)
    return make_sampler(
        config,
        graph,
        preprocessor,
        mesh,
        batch_size=config.batch_size,
        group=config.hard_cases.mine_rollouts,
        temperature=config.grpo.temperature,
        key=jax.random.fold_in(key, step),
    )


def mine(
    config: ConfigDict,
    work: Answering,
    parameters: Parameters,
    model: str,
    should_stop: Callable[[], bool],
    step: int = 0,
) -> DifficultyTable | None:
    """Samples completions of the records of `work`, and writes the folder.

    Args:
        work: with a sampler from `make_mining_sampler`.
        model: name of the parameters in mining.json.
        should_stop: from `preemption_guard`.
        step: step of the run, for the table's `last_seen`.

    Returns:
        The table of these records; None if it stopped early; the same call then resumes.

    Raises:
        UserError: the folder holds results of other settings.
    """
    folder, ids, is_first = work.folder, work.ids, jax.process_index() == 0
    settings = {
        "model": model,
        "step": step,
        "rollouts": config.hard_cases.mine_rollouts,
        "temperature": config.grpo.temperature,
        "max_completion_length": config.max_completion_length,
        "batch_size": config.batch_size,
        "seed": config.seed,
    } | describe_samples(ids)
    if is_first:
        claim_folder(folder / "mining.json", settings, _OUTPUTS, "mined")
    if (folder / "table.npz").exists():
        if is_first:
            remove_parts(folder)
        table = load_table(str(folder), ids, 0.0)
        return table._replace(last_seen=np.full(len(ids), step, np.int32))
    rates: list[float] = []
    finished = answer_split(
        work, parameters, _with_exact_share, lambda row: rates.append(row["exact"]), should_stop
    )
    if not finished:
        return None
    hard_cases = config.hard_cases
    table = update_table(
        init_table(len(ids)),
        np.arange(len(ids)),
        np.array(rates),
        step,
        hard_cases,
        hard_cases.mine_rollouts,
    )
    if is_first:
        join_parts(work, "completions.jsonl", _FIELDS)
        result = table_statistics(table)
        write_json(folder / "mining.json", {"settings": settings, "result": result})
        _write_table(folder, ids, table)
        remove_parts(folder)
    return table


def _with_exact_share(row: Row) -> Row:
    """Adds the share of a sample's completions that is exactly right."""
    gold, options = frozenset(row["answer"]), row["num_options"]
    predicted = [parse_answer(text, options) for text in row["completions"]]
    exact = [dpa_reward(each, gold, options, "exact") for each in predicted]
    return row | {"exact": float(np.mean(exact))}


def _write_table(folder: epath.Path, ids: Sequence[str], table: DifficultyTable) -> None:
    content = io.BytesIO()
    arrays: dict[str, Any] = table._asdict()
    np.savez(content, ids=np.array(ids), **arrays)
    write_whole(folder / "table.npz", content.getvalue())


def load_table(folder: str, ids: Sequence[str], prior: float) -> DifficultyTable:
    """The table that `mine` wrote, matched by id; samples that were not mined get the prior.

    Raises:
        UserError: the table is missing or incomplete, or contains none of the samples.
    """
    file = epath.Path(folder) / "table.npz"
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            mined, rates, counts, right = (
                arrays[name] for name in ("ids", "pass_rate", "count", "num_exact")
            )
    except FileNotFoundError:
        raise UserError(
            f"{file}: is missing; aesthetic-jax mine --out={folder} writes it"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
    ) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"{file}: is no whole table ({reason}); remove it and mine again") from None
    is_table = len(mined) == len(rates) == len(counts) == len(right) and (
        ((rates >= 0) & (rates <= 1)).all() and ((right >= 0) & (right <= counts)).all()
    )
    if not is_table:
        raise UserError(f"{file}: is no difficulty table; remove it and mine again")
    table = init_table(len(ids), prior)
    row_of = {name: row for row, name in enumerate(mined.tolist())}
    rows = np.array([row_of.get(name, -1) for name in ids])
    known = rows >= 0
    if not known.any():
        raise UserError(f"{file}: holds none of the train split's samples; mine this data set")
    table.pass_rate[known], table.count[known] = rates[rows[known]], counts[rows[known]]
    table.num_exact[known] = right[rows[known]]
    table.last_seen[known] = 0
    return table


def summarize_table(table: DifficultyTable, dimensions: np.ndarray) -> str:
    """Lines of text: shares never, sometimes and always solved, per dimension and overall."""
    lines = [f"{'':<24}{'samples':>9}{'pass rate':>11}{'never':>9}{'sometimes':>11}{'always':>9}"]
    chosen = {name: dimensions == i for i, name in enumerate(DIMENSIONS)}
    for name, rows in (chosen | {"overall": dimensions >= 0}).items():
        if not rows.any():
            continue
        statistics = table_statistics(DifficultyTable(*(x[rows] for x in table)))
        rate, never, always = (
            statistics[f"hard_cases/{x}"] for x in ("pass_rate", "never_solved", "always_solved")
        )
        sometimes = 1 - never - always
        lines.append(
            f"{name:<24}{rows.sum():>9}{rate:>11.3f}{never:>9.1%}{sometimes:>11.1%}{always:>9.1%}"
        )
    return "\n".join(lines)
