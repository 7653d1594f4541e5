"""The loop: batches in the order of round plans, steps, the difficulty table, logging, checkpoints, evaluation.

A step is one batch of prompts; in GRPO it holds the rollout and all updates on it, so that nothing is pending between
steps. Parameters, optimiser, difficulty table and the current plan are saved together, and together decide what follows.

Every host runs this loop. A host loads and scores its own rows; what decides a step's shapes, rewards and the table is gathered,
so that all hosts hold the same plans and tables, and process 0 alone writes the logs.
"""

import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from aesthetic_jax.checkpoints import training as checkpoints
from aesthetic_jax.data import hard_cases
from aesthetic_jax.data.pipeline import Batch, Encoder, epoch_plan, planned_batches
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record, open_records
from aesthetic_jax.data.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import mining
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.evaluation import make_sampler, predict, summarize_predictions
from aesthetic_jax.training.flops import peak_flops
from aesthetic_jax.training.mesh import check_rows, local_rows, make_mesh
from aesthetic_jax.training.metrics import MetricsWriter, truncate
from aesthetic_jax.training.model import initial_model, make_encoder, tokenizer_directory
from aesthetic_jax.training.preemption import notices
from aesthetic_jax.training.provenance import check_same_config, write_config
from aesthetic_jax.training.run import Run, prepare
from aesthetic_jax.training.speed import Speed
from aesthetic_jax.training.state import Parameters, TrainState, init_state, split, trained_parts
from aesthetic_jax.training.steps import make_grpo, make_sft


def train(config: ConfigDict, workdir: str, allow_config_change: bool = False) -> bool:
    """Runs a config in a run directory, from its newest whole checkpoint if it has one, on all devices of all hosts.

    Args:
        allow_config_change: go on from a checkpoint though the config is another now.

    Returns:
        Whether the run is done; False: SIGTERM stopped it behind a step, and a checkpoint of this step is saved, or behind a
        batch of mining.

    Raises:
        UserError: the config, the data, the devices or what is in the directory does not fit.
    """
    check_config(config)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size, config.micro_batches)
    if config.eval_every:
        check_rows(mesh, "eval_batch_size", config.eval_batch_size)
    peak = peak_flops(config.model.dtype)
    with jax.set_mesh(mesh), notices() as is_to_stop:
        return _train(config, workdir, mesh, peak, allow_config_change, is_to_stop)


def _train(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    peak: float,
    allow_config_change: bool,
    is_to_stop: Callable[[], bool],
) -> bool:
    records = open_records(config.data.manifest, config.data.data_dir, "train")
    candidates = _candidates(config, records)
    architecture, tokenizer, parameters, resumed = _begin(
        config, workdir, records, candidates, mesh, allow_config_change
    )
    encoder = make_encoder(config, architecture, tokenizer)
    run = prepare(config, architecture, mesh)
    round_length = config.hard_cases.round_steps * config.batch_size
    table = hard_cases.init_table(len(candidates), config.hard_cases.get("prior", 0.5))
    plan = np.zeros(round_length, np.int32)
    dimensions = records.dimensions()[candidates] if config.hard_cases.get("balance_dimensions") else None
    reference = None
    if config.method == "grpo" and config.grpo.beta:
        reference = parameters if resumed is None else initial_model(config, lambda: (), mesh)[1]
    if resumed is None and config.hard_cases.get("table"):
        table = mining.load_table(config.hard_cases.table, records.ids(), config.hard_cases.prior)
    manager = checkpoints.open_manager(workdir, config.keep_checkpoints)  # last: its threads complain of an early end
    parts = trained_parts(config.model)
    if resumed is None:
        start = jax.jit(lambda x: init_state(x, run.optimizer, **parts), out_shardings=run.shardings)
        state = start(jax.tree.map(jnp.copy, parameters))
    else:
        abstract = run.parameters, run.state.optimizer
        parameters, optimizer_state, (table, plan) = checkpoints.restore(manager, resumed, *abstract, (table, plan))
        state = TrainState(*split(parameters, **parts), optimizer_state)
    del parameters

    step = make_sft(run) if config.method == "sft" else make_grpo(run, tokenizer, reference)
    evaluate = _make_evaluate(run, encoder) if config.eval_every else None

    done = resumed or 0
    first = jax.process_index() == 0
    writer = None
    if first:
        truncate(workdir, done)
        writer = MetricsWriter(workdir)
    mine = local_rows(mesh, config.batch_size)
    progress = tqdm(
        total=config.num_steps, initial=done, desc=config.method, unit="step", disable=None if first else True
    )
    batches: Iterator[Batch] | None = None
    speed = Speed(peak)
    while done < config.num_steps:
        round_index, place = divmod(done, config.hard_cases.round_steps)
        if place == 0:
            if mining.is_due(config, done):
                # Mining takes long, and goes on where it is cut off: from here.
                if done != (resumed or 0) and done % config.checkpoint_every:
                    checkpoints.save(manager, done, state.parameters, state.optimizer, (table, plan))
                folder, model = f"{workdir}/mined", f"step {done} of the run"
                mined = mining.mine(
                    config, state.parameters, run.graph, records, encoder, folder, model, mesh, is_to_stop, done
                )
                if mined is None:
                    break
                table = mined
            plan = _make_plan(config, round_index, candidates, table, dimensions)
        if batches is None or place == 0:
            batches = planned_batches(
                records,
                plan,
                encoder,
                config.batch_size,
                with_completion=config.method == "sft",
                rows=mine,
                start=place,
                threads=config.data.threads,
            )
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        state, metrics, exact = step(state, batch, done)
        speed.add(waited, metrics.pop("tokens"), metrics.pop("flops"))
        done += 1
        stop = is_to_stop()
        last = done == config.num_steps
        if exact is not None:
            rows = np.searchsorted(candidates, plan[place * config.batch_size :][: config.batch_size])
            hard = hard_cases.is_hard(table, rows, config.hard_cases.hard_below).mean()
            table = hard_cases.update_table(table, rows, exact, done, config.hard_cases)
            metrics |= {"hard_cases/in_batch": hard} | hard_cases.table_statistics(table)
        if evaluate and (done % config.eval_every == 0 or last):
            metrics |= evaluate(state.parameters)
        if done % config.log_every == 0 or last:
            metrics = jax.device_get(metrics) | speed.report()
            if writer is not None:
                shown = writer.write(done, metrics)
                named = ("loss", "reward", "exact")
                progress.set_postfix({name: f"{shown[name]:.3f}" for name in named if name in shown})
        progress.update()
        if done % config.checkpoint_every == 0 or last or stop:
            checkpoints.save(manager, done, state.parameters, state.optimizer, (table, plan))
        if stop:
            break
    manager.wait_until_finished()
    manager.close()
    if writer is not None:
        writer.close()
    return done == config.num_steps


def _candidates(config: ConfigDict, records) -> np.ndarray:
    """Indices of the records that a method can learn from: SFT needs a chain of thought."""
    if config.method == "grpo":
        return np.arange(len(records))
    candidates = np.flatnonzero(records.has_reasoning())
    if not candidates.size:
        raise UserError("config.data: no sample of the train split has reasoning to learn from; SFT needs some")
    return candidates


def _begin(
    config: ConfigDict, workdir: str, records, candidates: np.ndarray, mesh: Mesh, allow_config_change: bool
) -> tuple:
    """Architecture, tokenizer, parameters and the step to resume from (None: parameters are the initial ones)."""
    resumed = checkpoints.newest_step(workdir)
    if checkpoints.saved_steps(workdir):
        check_same_config(config, workdir, resumed or 0, allow_config_change)
        if jax.process_index() == 0:
            checkpoints.set_aside_newer(workdir, resumed)
    if resumed is not None:
        return checkpoints.read_architecture(workdir), load_tokenizer(f"{workdir}/tokenizer"), None, resumed
    architecture, parameters, tokenizer = initial_model(config, lambda: _texts(records, candidates), mesh)
    if jax.process_index():
        return architecture, tokenizer, parameters, None
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    write_config(config, workdir)
    checkpoints.write_architecture(workdir, architecture)
    if config.init_from:
        copy_tokenizer(tokenizer_directory(config.init_from), f"{workdir}/tokenizer")
    else:
        save_tokenizer(tokenizer, f"{workdir}/tokenizer")
    return architecture, tokenizer, parameters, None


def _texts(records, candidates: np.ndarray) -> Iterator[str]:
    """Prompts and completions, for a tokenizer to be trained on."""
    for index in candidates[:2000]:
        record: Record = records[int(index)]
        question = record.question or question_text(record.dimension, record.num_options)
        yield prompt_text(question, [1] * len(record.images), 1)
        yield completion_text(record.reasoning or "", record.answer)


def _make_plan(
    config: ConfigDict, round_index: int, candidates: np.ndarray, table, dimensions: np.ndarray | None
) -> np.ndarray:
    length = config.hard_cases.round_steps * config.batch_size
    before_mining = round_index * config.hard_cases.round_steps < config.hard_cases.get("mine_at", 0)
    if config.hard_cases.mode == "off" or (config.hard_cases.mode == "two_stage" and before_mining):
        return epoch_plan(config.seed, round_index, candidates, length)
    settings = config.hard_cases.copy_and_resolve_references().unlock()
    settings.plan_length = length
    return candidates[hard_cases.make_plan(config.seed, round_index, table, settings, dimensions)].astype(np.int32)


def _make_evaluate(run: Run, encoder: Encoder) -> Callable[[Parameters], dict[str, float]]:
    config, mesh = run.config, run.mesh
    records = open_records(config.data.manifest, config.data.data_dir, "validation")
    greedy = make_sampler(run.graph, encoder, config.max_completion_length, mesh, hold_layers=config.mesh.hold_layers)

    def evaluate(parameters: Parameters) -> dict[str, float]:
        predictions = predict(greedy, parameters, records, encoder, config.eval_batch_size, mesh, config.eval_samples)
        overall = summarize_predictions(predictions)["overall"]
        return {f"eval/{name}": entry["value"] for name, entry in overall.items()}

    return evaluate
