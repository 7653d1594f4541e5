"""Which samples each step sees: the difficulty table, round plans, and when to mine.

A round is the `hard_cases.round_steps` steps between two plans. Its plan, the order of samples, is
drawn before it starts and never changes. Table and plan are saved with every checkpoint, and
together they decide all later batches.
"""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from aesthetic_jax.data import hard_cases
from aesthetic_jax.data.pipeline import Batch, Preprocessor, epoch_plan, planned_batches
from aesthetic_jax.data.records import Records, refuse_descriptions
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import forecast, mining
from aesthetic_jax.training.answering import Answering
from aesthetic_jax.training.mesh import local_rows
from aesthetic_jax.training.setup import TrainSetup
from aesthetic_jax.training.state import TrainState

Progress = tuple[hard_cases.DifficultyTable, Int[np.ndarray, " R"]]  # table and plan


def eligible_samples(config: ConfigDict, records: Records) -> Int[np.ndarray, " E"]:
    """Indices of the records that a method can learn from: SFT needs a chain of thought.

    Raises:
        UserError: there are none, or GRPO finds no candidates to choose from.
    """
    if config.method == "grpo":
        refuse_descriptions(records, "train", "GRPO needs samples with an answer to reward")
        return np.arange(len(records))
    eligible = np.flatnonzero(records.has_reasoning())
    if not eligible.size:
        raise UserError(
            "config.data: no sample of the train split has reasoning to learn from; SFT needs some"
        )
    return eligible


class Curriculum:
    """Gives each step its batch, and updates the difficulty table with the step's result.

    Attributes:
        input_wait: seconds spent waiting for the last batch.
    """

    def __init__(
        self,
        setup: TrainSetup,
        records: Records,
        preprocessor: Preprocessor,
        workdir: str,
        should_stop: Callable[[], bool],
    ):
        config = setup.config
        self._setup, self._records, self._preprocessor = setup, records, preprocessor
        self._workdir, self._should_stop = workdir, should_stop
        self._eligible = eligible_samples(config, records)
        # What plans need to know of the samples; shuffled epochs need nothing.
        self._facts = self._read_facts() if config.hard_cases.mode != "off" else ()
        self._table = hard_cases.init_table(len(self._eligible), config.hard_cases.prior)
        self._plan = np.zeros(config.hard_cases.round_steps * config.batch_size, np.int32)
        self._batches: Iterator[Batch] | None = None
        self.input_wait = 0.0

    @property
    def progress(self) -> Progress:
        """Table and plan, as a checkpoint saves them."""
        return self._table, self._plan

    def restore(self, progress: Progress) -> None:
        """Continues from a checkpoint's progress."""
        self._table, self._plan = progress

    def load_table(self) -> None:
        """Starts with the table that `hard_cases.table` names, if any.

        Raises:
            UserError: as `mining.load_table`.
        """
        settings = self._setup.config.hard_cases
        if settings.table:
            self._table = mining.load_table(settings.table, self._records.ids(), settings.prior)

    def forecast(self) -> str:
        """A line that says what mining can do in this run; "" where its mode is off."""
        config = self._setup.config
        if config.hard_cases.mode == "off":
            return ""
        table = self._table if config.hard_cases.table else None
        return forecast.describe(
            forecast.forecast_mining(config, len(self._eligible), table, *self._facts)
        )

    def mines_before(self, step: int) -> bool:
        """Whether a run mines before this step."""
        config = self._setup.config
        return step in mining.mining_steps(config.hard_cases, config.num_steps)

    def next_batch(self, step: int, state: TrainState) -> Batch | None:
        """This host's rows of a step's batch; where a round starts, mines if due and draws a plan.

        Args:
            step: number of the step, from 0.
            state: its parameters are used for mining.

        Returns:
            The batch; None where mining stopped early.
        """
        config = self._setup.config
        round_index, step_in_round = divmod(step, config.hard_cases.round_steps)
        if step_in_round == 0:
            if self.mines_before(step) and not self._mine(step, state):
                return None
            self._plan = self._make_plan(round_index)
            self._batches = None
        if self._batches is None:
            self._batches = planned_batches(
                self._records,
                self._plan,
                self._preprocessor,
                config.batch_size,
                with_completion=config.method == "sft",
                rows=local_rows(self._setup.mesh, config.batch_size),
                start=step_in_round,
                threads=config.data.threads,
            )
        started = time.perf_counter()
        batch = next(self._batches)
        self.input_wait = time.perf_counter() - started
        return batch

    def record(self, step: int, exact: Float[np.ndarray, " B"] | None) -> dict[str, float]:
        """Updates the table with a step's result; returns metrics of the table.

        Args:
            step: number of the step, from 0.
            exact: share of exact answers of each prompt of the batch; None: nothing to learn.
        """
        if exact is None:
            return {}
        config = self._setup.config
        settings, size = config.hard_cases, config.batch_size
        start = step % settings.round_steps * size
        rows = np.searchsorted(self._eligible, self._plan[start : start + size])
        share_hard = hard_cases.is_hard(self._table, rows, settings.hard_below).mean()
        self._table = hard_cases.update_table(
            self._table, rows, exact, step + 1, settings, config.grpo.num_generations
        )
        return {"hard_cases/in_batch": share_hard} | hard_cases.table_statistics(self._table)

    def _make_plan(self, round_index: int) -> Int[np.ndarray, " R"]:
        config, settings = self._setup.config, self._setup.config.hard_cases
        length = settings.round_steps * config.batch_size
        is_mined = settings.mode == "two_stage" and (
            round_index * settings.round_steps >= settings.mine_step
        )
        is_online = settings.mode == "online" and (round_index > 0 or settings.table)
        if not is_online and not is_mined:
            return epoch_plan(config.seed, round_index, self._eligible, length)
        settings = settings.copy_and_resolve_references().unlock()
        settings.plan_length = length
        rows = hard_cases.make_plan(config.seed, round_index, self._table, settings, *self._facts)
        return self._eligible[rows].astype(np.int32)

    def _mine(self, step: int, state: TrainState) -> bool:
        """Updates the table by rollouts; False where it stopped early.

        The first time, it samples every record and starts the table anew. Later, it samples the
        share `hard_cases.mine_probe` that weighs most. `last_seen` is kept: it counts visits in
        training alone.
        """
        setup, settings, table = self._setup, self._setup.config.hard_cases, self._table
        rows, is_first = np.arange(len(table.count)), step == settings.mine_step
        if not is_first:
            weights = hard_cases.sample_weights(table, settings, *self._facts)
            count = math.ceil(settings.mine_probe * len(rows))
            rows = hard_cases.hardest(setup.config.seed, step, weights, count)
        ids, indices = self._records.ids(), self._eligible[rows]
        work = Answering(
            mining.make_mining_sampler(
                setup.config, setup.graph, self._preprocessor, setup.mesh, step
            ),
            self._records,
            [ids[index] for index in indices],
            epath.Path(self._workdir) / "mined" / str(step),
            "mining",
            indices,
        )
        mined = mining.mine(
            setup.config,
            work,
            state.parameters,
            f"step {step} of the run",
            self._should_stop,
            step,
        )
        if mined is None:
            return False
        before = hard_cases.init_table(len(ids)) if is_first else table
        updated = hard_cases.update_table(
            before, rows, mined.pass_rate, step, settings, settings.mine_rollouts
        )
        self._table = updated._replace(last_seen=table.last_seen)
        return True

    def _read_facts(self) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
        """Dimension and number of options of each eligible sample."""
        records, eligible = self._records, self._eligible
        return records.dimensions()[eligible], records.num_options()[eligible]
