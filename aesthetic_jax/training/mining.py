"""Mining: what a model gets wrong, found by rollouts of every sample, so that later rounds can show it more often.

A folder of mined samples holds `mining.json` (what they were mined with, and the outcome), `completions.jsonl` (of every
sample its id, dimension, answer, completions and the share of them that is exactly right) and, written last, `table.npz` (ids and
the difficulty table). Until then each batch is a file in `parts/`, as an object store appends to nothing. Noise is keyed by the
sample: what is cut off goes on where it was and ends up the same.
"""

import hashlib
import io
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from aesthetic_jax.data.hard_cases import DifficultyTable, init_table, table_statistics
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.pipeline import Encoder, planned_batches
from aesthetic_jax.data.records import Records
from aesthetic_jax.errors import UserError
from aesthetic_jax.files import write_whole
from aesthetic_jax.training import grpo
from aesthetic_jax.training.evaluation import make_sampler
from aesthetic_jax.training.mesh import gather_rows, local_rows
from aesthetic_jax.training.state import Parameters

_NOISE = 2**32 - 1  # folded into the run's key: no step has this number


def mine(
    config: ConfigDict,
    parameters: Parameters,
    graph: nnx.GraphDef,
    records: Records,
    encoder: Encoder,
    folder: str,
    model: str,
    mesh: Mesh,
    is_to_stop: Callable[[], bool],
    step: int = 0,
) -> DifficultyTable | None:
    """Samples `hard_cases.mine_rollouts` completions of every record and writes the folder.

    Args:
        config: of GRPO; batches and sampling are those of its rollouts.
        model: names the parameters in mining.json.
        mesh: that the parameters live on; the first of its hosts writes.
        is_to_stop: of `preemption.notices`, asked behind each batch but the last.
        step: of the run; the table's `last_seen`.

    Returns:
        The table; None where it stopped before its end, from which the same call goes on.

    Raises:
        UserError: the folder holds what was mined with other settings.
    """
    target, ids = epath.Path(folder), records.ids()
    settings = {
        "model": model,
        "step": step,
        "rollouts": config.hard_cases.mine_rollouts,
        "temperature": config.grpo.temperature,
        "max_completion_length": config.max_completion_length,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "samples": len(ids),
        "samples_blake2b": hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest(),
    }
    if jax.process_index() == 0:
        _claim(target, settings)
    if (target / "table.npz").exists():
        if jax.process_index() == 0 and (target / "parts").exists():  # cut off at its last act
            (target / "parts").rmtree()
        return load_table(folder, ids, 0.0)._replace(last_seen=np.full(len(ids), step, np.int32))
    sample = make_sampler(
        graph,
        encoder,
        config.max_completion_length,
        mesh,
        settings["rollouts"],
        config.grpo.temperature,
        config.mesh.hold_layers,
    )
    key = jax.random.fold_in(jax.random.key(config.seed), _NOISE)
    steps = math.ceil(len(ids) / config.batch_size)
    plan = np.resize(np.arange(len(ids), dtype=np.int32), steps * config.batch_size)  # the first fill up the last batch
    parts = [target / "parts" / f"{number:06d}.jsonl" for number in range(steps)]
    names = [ids[start : start + config.batch_size] for start in range(0, len(ids), config.batch_size)]
    there = itertools.takewhile(lambda rates: rates is not None, map(_read_rates, parts, names))
    rates = list(itertools.chain(*there))
    first = math.ceil(len(rates) / config.batch_size)
    batches = planned_batches(
        records,
        plan,
        encoder,
        config.batch_size,
        with_completion=False,
        rows=local_rows(mesh, config.batch_size),
        start=first,
        threads=config.data.threads,
    )
    silent = True if jax.process_index() else None
    progress = tqdm(batches, total=steps, initial=first, desc="mining", unit="batch", disable=silent)
    for number, local in enumerate(progress, start=first):
        texts = grpo.decode(*sample(parameters, local, key), encoder.tokenizer)
        told = {name: getattr(local, name) for name in ("answer", "num_options", "dimension")}
        batch = local._replace(**gather_rows(mesh, told))
        exact = grpo.score(texts, batch, config.reward, 0.0).exact.mean(axis=1, dtype=np.float64)
        lines = []
        for row, name in enumerate(names[number]):
            fields = {
                "id": name,
                "dimension": DIMENSIONS[batch.dimension[row]],
                "answer": sorted(grpo.gold_letters(int(batch.answer[row]))),
                "exact": exact[row],
                "completions": texts[row],
            }
            lines.append(json.dumps(fields) + "\n")
        rates += exact[: len(lines)].tolist()
        if jax.process_index() == 0:
            parts[number].parent.mkdir(exist_ok=True)
            write_whole(parts[number], "".join(lines))
        if number < steps - 1 and is_to_stop():
            return None
    table = DifficultyTable(np.array(rates), np.ones(len(ids), np.int32), np.full(len(ids), step, np.int32))
    if jax.process_index() == 0:
        _finish(target, parts, ids, table, settings)
    return table


def _read_rates(part: epath.Path, ids: Sequence[str]) -> list[float] | None:
    """Rates of the samples of one batch; None if their file isn't there, whole."""
    try:
        rows = [json.loads(line) for line in part.read_text().splitlines()]
        return [float(row["exact"]) for row in rows] if [row["id"] for row in rows] == list(ids) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _finish(
    folder: epath.Path,
    parts: Sequence[epath.Path],
    ids: Sequence[str],
    table: DifficultyTable,
    settings: dict[str, Any],
) -> None:
    """Puts the parts together, writes the outcome and the table, and removes the parts."""
    partial = folder / "completions.jsonl.partial"
    with partial.open("w") as joined:
        for part in parts:
            joined.write(part.read_text())
    partial.replace(folder / "completions.jsonl")
    _write_json(folder / "mining.json", {"settings": settings, "result": table_statistics(table)})
    content = io.BytesIO()
    np.savez(content, ids=np.array(ids), **table._asdict())
    write_whole(folder / "table.npz", content.getvalue())
    parts[0].parent.rmtree()


def is_due(config: ConfigDict, step: int) -> bool:
    """Whether a run mines before this step, the first of a round."""
    settings = config.hard_cases
    return settings.mode == "two_stage" and not settings.table and step == settings.mine_at


def load_table(folder: str, ids: Sequence[str], prior: float) -> DifficultyTable:
    """The table that `mine` wrote, for samples found by their ids; those that were not mined have the prior.

    Raises:
        UserError: there is no whole table, or none of the samples is in it.
    """
    file = epath.Path(folder) / "table.npz"
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            mined, rates, counts = (arrays[name] for name in ("ids", "pass_rate", "count"))
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; aesthetic-jax mine --out={folder} writes it") from None
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file}: is no whole table ({' '.join(str(error).split())[:80]}); remove it and mine again"
        ) from None
    if not len(mined) == len(rates) == len(counts) or not ((rates >= 0) & (rates <= 1)).all():
        raise UserError(f"{file}: is no difficulty table; remove it and mine again")
    table = init_table(len(ids), prior)
    row_of = {name: row for row, name in enumerate(mined.tolist())}
    rows = np.array([row_of.get(name, -1) for name in ids])
    known = rows >= 0
    if not known.any():
        raise UserError(f"{file}: none of the train split's samples is in it; mine this data set")
    table.pass_rate[known], table.count[known], table.last_seen[known] = rates[rows[known]], counts[rows[known]], 0
    return table


def summarize_table(table: DifficultyTable, dimensions: np.ndarray) -> str:
    """A few lines of text: per dimension and overall, how much is never, sometimes and always solved."""
    lines = [f"{'':<24}{'samples':>9}{'pass rate':>11}{'never':>9}{'sometimes':>11}{'always':>9}"]
    for name, rows in [(x, dimensions == i) for i, x in enumerate(DIMENSIONS)] + [("overall", dimensions >= 0)]:
        if rows.any():
            found = table_statistics(DifficultyTable(*(x[rows] for x in table)))
            rate, never, always = (found[f"hard_cases/{x}"] for x in ("pass_rate", "never_solved", "always_solved"))
            sometimes = 1 - never - always
            lines.append(f"{name:<24}{rows.sum():>9}{rate:>11.3f}{never:>9.1%}{sometimes:>11.1%}{always:>9.1%}")
    return "\n".join(lines)


def _claim(folder: epath.Path, settings: dict[str, Any]) -> None:
    """Writes mining.json, unless another mining's is there."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mining.json"
    if not file.exists():
        if any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; name another folder")
        _write_json(file, {"settings": settings})
        return
    try:
        before = json.loads(file.read_text())["settings"]
        changed = [name for name in settings if before.get(name) != settings[name]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: can't be read; remove {folder} to mine again") from None
    if changed:
        name = changed[0]
        raise UserError(
            f"{file}: was mined with {name} {before.get(name)!r}, not {settings[name]!r}; remove {folder} or name another"
        )


def _write_json(file: epath.Path, content: dict[str, Any]) -> None:
    write_whole(file, json.dumps(content, indent=2) + "\n")
