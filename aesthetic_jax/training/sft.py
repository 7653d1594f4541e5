"""Stage 1: supervised fine-tuning on chains of thought."""

import optax
from flax import nnx
from jaxtyping import Array

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.losses import sft_loss
from aesthetic_jax.training.state import TrainState, update


def sft_step(
    state: TrainState,
    batch: Batch,
    *,
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """One SFT step: the mean negative log-likelihood of the batch's completion tokens, end of turn included.

    Every token of the batch weighs the same, however they fall into micro-batches (TRL's SFTTrainer with
    average_tokens_across_devices).
    """
    tokens_per_micro_batch = batch.completion_mask.sum() / micro_batches

    def loss(model, batch):
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        logprobs, _ = completion_logprobs(model, prompt, batch.completion_ids)
        return sft_loss(logprobs, batch.completion_mask, tokens_per_micro_batch), {}

    state, metrics = update(state, batch, loss, graph=graph, optimizer=optimizer, micro_batches=micro_batches)
    return state._replace(step=state.step + 1), metrics
