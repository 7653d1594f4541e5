"""Stage 1: supervised fine-tuning on chains of thought."""

from collections.abc import Callable, Sequence

import optax
from flax import nnx
from jaxtyping import Array

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.losses import sft_loss
from aesthetic_jax.training.state import TrainState, make_update, tokens_per_part


def make_sft_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Sequence[Batch]], tuple[TrainState, dict[str, Array]]]:
    """One SFT step: the mean negative log-likelihood of the batch's completion tokens, end of turn included.

    Every token of the batch weighs the same, however they fall into parts (TRL's SFTTrainer with
    average_tokens_across_devices).

    Returns:
        (state, parts of the batch) -> (new state, metrics); see `make_update`.
    """

    def loss(model: InternVL, part: Batch, num_items: Array):
        prompt = model.prefill(part.tiles, part.prompt_ids, part.prompt_mask)
        logprobs, _ = completion_logprobs(model, prompt, part.completion_ids)
        return sft_loss(logprobs, part.completion_mask, num_items), {}

    update = make_update(loss, graph=graph, optimizer=optimizer)

    def step(state: TrainState, parts: Sequence[Batch]):
        state, metrics = update(state, parts, tokens_per_part([part.completion_mask for part in parts]))
        return state._replace(step=state.step + 1), metrics

    return step
