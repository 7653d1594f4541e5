"""Stage 1: supervised fine-tuning on chains of thought."""

import optax
from flax import nnx
from jaxtyping import Array

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.losses import sft_loss
from aesthetic_jax.training.state import TrainState, Update, make_update


def make_sft_update(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> Update:
    """One SFT step on parts of a Batch: the mean negative log-likelihood of its completion tokens, end of turn included.

    Every token of the batch weighs the same, however they fall into parts (TRL's SFTTrainer with
    average_tokens_across_devices). `shardings` as in `make_update`.
    """

    def loss(model: InternVL, part: Batch, tokens: Array, _: None):
        prompt = model.prefill(part.tiles, part.prompt_ids, part.prompt_mask)
        logprobs, _ = completion_logprobs(model, prompt, part.completion_ids)
        return sft_loss(logprobs, part.completion_mask, tokens), {}

    return make_update(loss, graph=graph, optimizer=optimizer, shardings=shardings)
