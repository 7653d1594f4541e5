"""The trainer's own programs and inputs at a benchmark's size.

Updates and rollouts of all benchmarks come from here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from aesthetic_jax.data.pipeline import Batch, trim
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import InternVL, Parameters, abstract_model
from aesthetic_jax.rl import rollouts
from aesthetic_jax.training import grpo, sft
from aesthetic_jax.training.config import sft_config
from aesthetic_jax.training.optimizer import make_optimizer
from aesthetic_jax.training.state import TrainState, init_state
from aesthetic_jax.training.update import Update, split_microbatches
from benchlib import inputs
from benchlib.sizes import Size

NO_TOKEN = -1  # as end token: no completion ends before its full length


def random_parameters(config: InternVLConfig) -> Parameters:
    """Random float32 parameters."""
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(InternVL(config, rngs=nnx.Rngs(0)))))()


def optimizer() -> optax.GradientTransformation:
    """AdamW with the defaults of an SFT config."""
    return make_optimizer(sft_config().optimizer, 100)


def train_state(parameters: Parameters) -> TrainState:
    """The state before the first update, everything trained."""
    return init_state(parameters, optimizer(), (), False)


def sft_update(size: Size) -> Update:
    """The update of SFT."""
    return sft.make_sft_update(abstract_model(size.config)[0], optimizer())


def grpo_update(size: Size) -> Update:
    """The update of GRPO, temperature 1 and beta 0.04; it computes the reference's logprobs."""
    return grpo.make_grpo_update(
        abstract_model(size.config)[0], optimizer(), temperature=1.0, loss_type="grpo", beta=0.04
    )


def rollout(size: Size, group: int, end_token: int = NO_TOKEN) -> Callable:
    """Prefill and sampling at temperature 1, compiled: (parameters, batch, key) -> Rollout."""
    sampling = rollouts.Sampling(group, size.completion, end_token, pad_token=0, temperature=1.0)
    graph, _ = abstract_model(size.config)
    return jax.jit(functools.partial(rollouts.rollout, graph=graph, sampling=sampling))


def make_batch(
    size: Size, text: list[int] | None = None, completions: list[int] | None = None
) -> Batch:
    """A batch of `inputs.prompts` with random completions.

    Args:
        size: size of the model and its images.
        text: as in `inputs.prompts`.
        completions: tokens of each sample's completion; None: no completions.
    """
    completions = completions or [0] * len(text or [0])
    mask = np.arange(max(completions)) < np.array(completions)[:, None]
    rows = len(completions)
    ids = np.random.default_rng(1).integers(4, 250, mask.shape)
    return Batch(
        **inputs.prompts(size, text),
        completion_ids=ids[:, None].astype(np.int32),
        completion_mask=mask[:, None],
        index=np.arange(rows, dtype=np.int32),
        answer=np.zeros(rows, np.int32),
        num_options=np.full(rows, 4, np.int32),
        dimension=np.zeros(rows, np.int32),
    )


def make_microbatches(size: Size, batch: Batch, count: int) -> list[Batch]:
    """Microbatches of an SFT batch, padding cut to the size's buckets, as the trainer does."""
    microbatches = split_microbatches(batch, batch.completion_mask, count)
    return [trim(microbatch, size.buckets) for microbatch in microbatches]


def make_experience(size: Size, group: int) -> grpo.Experience:
    """One prompt's group of full completions, on policy."""
    rng, shape = np.random.default_rng(1), (1, group, size.completion)
    return grpo.Experience(
        **jax.device_put(inputs.prompts(size)),
        completion_ids=jnp.asarray(rng.integers(4, 250, shape), jnp.int32),
        completion_mask=jnp.ones(shape, bool),
        advantages=jnp.asarray(rng.standard_normal(shape[:2]), jnp.float32),
        old_logprobs=None,
        ref_logprobs=None,
    )
