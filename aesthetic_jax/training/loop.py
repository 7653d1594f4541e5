"""The training loop: batches, steps, metrics, checkpoints, evaluation.

A step is one batch of prompts. In GRPO it holds the rollout and all updates on it, so nothing is
pending between steps. Parameters, optimiser, difficulty table and plan are saved together, so a
killed run resumes bit for bit; on another number of devices or hosts, up to rounding.

Every host runs this loop. A host loads and rewards its own rows. Row sizes, rewards and exact
matches are gathered, so all hosts hold the same table and plans. Only process 0 writes logs.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from aesthetic_jax.checkpoints import runs
from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Records, open_records, refuse_descriptions
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.curriculum import Curriculum
from aesthetic_jax.training.evaluation import predict, summarize_predictions
from aesthetic_jax.training.flops import peak_flops
from aesthetic_jax.training.grpo import make_grpo_step
from aesthetic_jax.training.mesh import check_rows, make_mesh
from aesthetic_jax.training.metric_writer import MetricWriter, Throughput, drop_metrics_after
from aesthetic_jax.training.model import make_preprocessor
from aesthetic_jax.training.preemption import preemption_guard
from aesthetic_jax.training.sampling import make_sampler
from aesthetic_jax.training.setup import (
    RunStart,
    TrainSetup,
    fresh_state,
    reference_parameters,
    restored_state,
    start_run,
)
from aesthetic_jax.training.sft import make_sft_step
from aesthetic_jax.training.state import TrainState
from aesthetic_jax.training.step import TrainStep

_SHOWN_METRICS = ("loss", "reward", "exact")  # in the progress bar
_TOKENIZER_SAMPLES = 2000  # for training the tokenizer of a model from scratch


def train(config: ConfigDict, workdir: str, allow_config_change: bool = False) -> bool:
    """Trains in a run directory, from its newest whole checkpoint, on all devices of all hosts.

    Args:
        allow_config_change: resume although the config has changed.

    Returns:
        Whether the run is done. False: SIGTERM stopped it after a saved step, or while mining.

    Raises:
        UserError: the config, data, devices and directory content don't fit together.
    """
    check_config(config)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size, config.micro_batches)
    if config.eval_every:
        check_rows(mesh, "eval_batch_size", config.eval_batch_size)
    peak = peak_flops(config.model.dtype)
    with jax.set_mesh(mesh), preemption_guard() as should_stop:
        return _train(config, workdir, mesh, peak, allow_config_change, should_stop)


def _train(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    peak: float,
    allow_config_change: bool,
    should_stop: Callable[[], bool],
) -> bool:
    records = open_records(config.data.manifest, config.data.data_dir, "train")
    start = start_run(
        config, workdir, mesh, lambda: _tokenizer_texts(config, records), allow_config_change
    )
    setup, resumed = start.setup, start.resumed
    preprocessor = make_preprocessor(config, setup.architecture, start.tokenizer)
    curriculum = Curriculum(setup, records, preprocessor, workdir, should_stop)
    if resumed is None:
        curriculum.load_table()
    train_step = _make_step(start)
    evaluate = _make_evaluate(setup, preprocessor) if config.eval_every else None
    # Opened last: the manager's threads complain when an error ends the process early.
    manager = runs.open_manager(workdir, config.keep_checkpoints)
    state = _first_state(start, manager, curriculum)
    del start  # frees the initial parameters

    def save() -> None:
        runs.save(manager, step, state.parameters, state.optimizer, curriculum.progress)

    step = last_saved = resumed or 0
    stopped = False
    if resumed is None and jax.process_index() == 0 and (line := curriculum.forecast()):
        print(line, file=sys.stderr)
    with _open_log(config, workdir, step, Throughput(peak)) as log:
        while step < config.num_steps and not stopped:
            if curriculum.mines_before(step) and step != last_saved:
                save()  # mining takes long; an interrupted run resumes from here
            batch = curriculum.next_batch(step, state)
            if batch is None:
                break
            state, result = train_step(state, batch, step)
            metrics = result.metrics | curriculum.record(step, result.exact)
            log.throughput.add(curriculum.input_wait, result.work)
            step, stopped = step + 1, should_stop()
            is_last = step == config.num_steps
            if evaluate and (step % config.eval_every == 0 or is_last):
                metrics |= evaluate(state)
            log.write(step, metrics)
            if step % config.checkpoint_every == 0 or is_last or stopped:
                save()
                last_saved = step
        manager.wait_until_finished()
        manager.close()
    return step == config.num_steps


def _make_step(start: RunStart) -> TrainStep:
    if start.setup.config.method == "sft":
        return make_sft_step(start.setup)
    return make_grpo_step(start.setup, start.tokenizer, reference_parameters(start))


def _first_state(
    start: RunStart, manager: ocp.CheckpointManager, curriculum: Curriculum
) -> TrainState:
    """The fresh or restored state; also restores the curriculum."""
    if start.resumed is None:
        assert start.parameters is not None
        return fresh_state(start.setup, start.parameters)
    state, progress = restored_state(start.setup, manager, start.resumed, curriculum.progress)
    curriculum.restore(progress)
    return state


def _tokenizer_texts(config: ConfigDict, records: Records) -> Iterator[str]:
    """Prompts and completions that a model from scratch trains its tokenizer on."""
    sources = [records]
    if config.model.tokenizer_data:
        sources.append(open_records(None, config.model.tokenizer_data, "train"))
    for source in sources:
        for index in np.flatnonzero(source.has_reasoning())[:_TOKENIZER_SAMPLES]:
            record = source[int(index)]
            question = record.question or question_text(record.dimension, record.num_options)
            yield prompt_text(question, [1] * len(record.images), 1)
            yield completion_text(record.reasoning or "", record.answer)


def _make_evaluate(
    setup: TrainSetup, preprocessor: Preprocessor
) -> Callable[[TrainState], dict[str, float]]:
    """Scores greedy answers to the first `eval_samples` questions of the validation split."""
    config, mesh = setup.config, setup.mesh
    records = open_records(config.data.manifest, config.data.data_dir, "validation")
    refuse_descriptions(records, "validation", "set config.eval_every to 0")
    sampler = make_sampler(
        config, setup.graph, preprocessor, mesh, batch_size=config.eval_batch_size
    )

    ids = records.ids()
    ids = ids[: config.eval_samples or len(ids)]

    def evaluate(state: TrainState) -> dict[str, float]:
        predictions = predict(sampler, state.parameters, records, ids)
        overall = summarize_predictions(predictions)["overall"]
        values = {f"eval/{name}": entry["value"] for name, entry in overall.items()}
        return {name: float("nan") if value is None else value for name, value in values.items()}

    return evaluate


class _Log:
    """Writes metrics of logged steps on process 0, and moves the progress bar."""

    def __init__(
        self,
        config: ConfigDict,
        writer: MetricWriter | None,
        progress: tqdm,
        throughput: Throughput,
    ):
        self._config, self._writer, self._progress = config, writer, progress
        self.throughput = throughput

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs a step, counted from 1, if it is due."""
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            metrics = jax.device_get(metrics) | self.throughput.report()
            if self._writer is not None:
                values = self._writer.write(step, metrics)
                shown = {x: f"{values[x]:.3f}" for x in _SHOWN_METRICS if x in values}
                self._progress.set_postfix(shown)
        self._progress.update()


@contextlib.contextmanager
def _open_log(
    config: ConfigDict, workdir: str, step: int, throughput: Throughput
) -> Iterator[_Log]:
    """The log of a run that resumes after `step`."""
    is_first = jax.process_index() == 0
    writer = None
    if is_first:
        drop_metrics_after(workdir, step)
        writer = MetricWriter(workdir)
    progress = tqdm(
        total=config.num_steps,
        initial=step,
        desc=config.method,
        unit="step",
        disable=None if is_first else True,
    )
    yield _Log(config, writer, progress, throughput)
    if writer is not None:
        writer.close()
