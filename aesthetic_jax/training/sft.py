"""Stage 1, supervised fine-tuning on chains of thought: the host step and the pure update."""

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from aesthetic_jax.data.pipeline import Batch, trim
from aesthetic_jax.models.internvl import InternVL, Parameters
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.losses import sft_loss
from aesthetic_jax.training.mesh import gather_rows, local_rows, put_rows, row_shards
from aesthetic_jax.training.setup import TrainSetup
from aesthetic_jax.training.state import TrainState
from aesthetic_jax.training.step import RowSizes, StepResult, TrainStep, count_work, row_sizes
from aesthetic_jax.training.update import Update, make_update, microbatch_rows


def make_sft_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    shardings: TrainState | None = None,
) -> Update:
    """One optimiser update on the mean negative log-likelihood of a batch's completion tokens.

    The end-of-turn token counts. Every token of the batch has the same weight, whatever its
    microbatch, as in TRL's SFTTrainer with average_tokens_across_devices.

    Args:
        shardings: as in `make_update`.
    """

    def loss_fn(model: InternVL, microbatch: Batch, tokens: Array, _: Parameters | None):
        prompt = model.prefill(
            microbatch.tiles, microbatch.prompt_ids, microbatch.prompt_mask, microbatch.features
        )
        logprobs, _entropy = completion_logprobs(model, prompt, microbatch.completion_ids)
        return sft_loss(logprobs, microbatch.completion_mask, tokens), {}

    return make_update(loss_fn, graph=graph, optimizer=optimizer, shardings=shardings)


def make_sft_step(setup: TrainSetup) -> TrainStep:
    """The step that the training loop calls with this host's rows of a batch."""
    architecture, mesh = setup.architecture, setup.mesh
    update = make_sft_update(setup.graph, setup.optimizer, setup.shardings)
    vision_passes = 1 if "vision" in setup.config.model.freeze else 3

    def step(state: TrainState, batch: Batch, _: int) -> tuple[TrainState, StepResult]:
        sizes = gather_rows(mesh, row_sizes(architecture, batch, batch.completion_mask))
        state, metrics = update(state, _microbatches(setup, batch, sizes))
        return state, StepResult(metrics, count_work(architecture, sizes, vision_passes, 3))

    return step


def _microbatches(setup: TrainSetup, batch: Batch, sizes: RowSizes) -> list[Batch]:
    """Microbatches on the mesh, each padded to the bucket of its longest row on any host."""
    config, mesh = setup.config, setup.mesh
    local_indices = local_rows(mesh, config.batch_size)
    completion = sizes.completion.max(1)
    microbatches = []
    for rows in microbatch_rows(completion, config.micro_batches, row_shards(mesh)):
        chosen = np.searchsorted(local_indices, rows[np.isin(rows, local_indices)])
        longest = int(sizes.prompt[rows].max()), int(completion[rows].max())
        local = jax.tree.map(lambda x, chosen=chosen: x[chosen], batch)
        microbatches.append(put_rows(mesh, trim(local, config.data, longest)))
    return microbatches
