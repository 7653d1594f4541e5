"""Our training sections: loss and gradients of SFT and GRPO, and 20 updates of each.

Each section looks the package's functions up in their modules and compiles them anew, so that
paritylib.errors can replace them.
"""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models import logprobs as package_logprobs
from aesthetic_jax.rl import advantages as package_advantages
from aesthetic_jax.rl import losses as package_losses
from aesthetic_jax.training import grpo as package_grpo
from aesthetic_jax.training import sft as package_sft
from aesthetic_jax.training.optimizer import make_optimizer
from aesthetic_jax.training.state import TrainState, init_state
from aesthetic_jax.training.update import split_microbatches
from paritylib import cases
from paritylib.ours_inputs import load_model, make_batch, open_tokenizer, split_batch
from paritylib.work import Work


def _tensors(prefix: str, parameters: dict, work: Work) -> dict[str, np.ndarray]:
    """Parameters, or gradients, by the names and in the shapes of the checkpoint's tensors."""
    config = huggingface.read_config(str(work.model))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_parameters(parameters, config, f"{folder}/tensors")
        tensors = load_file(f"{folder}/tensors/model.safetensors")
    return {f"{prefix}/{name}": x for name, x in tensors.items()}


def sft(work: Work) -> dict:
    """`sft_loss` of one batch, its gradient in the log-probabilities and in each parameter."""
    graph, parameters = load_model(work)
    samples = cases.samples(work, cases.SFT_SAMPLES, seed=3)[: cases.SFT_BATCH]
    batch = jax.device_put(make_batch(work, samples, completions=True))

    def logprobs(parameters):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, batch.completion_ids)[0]

    def loss(logprobs):
        return package_sft.sft_loss(logprobs, batch.completion_mask)

    value, gradients = jax.jit(jax.value_and_grad(lambda parameters: loss(logprobs(parameters))))(
        parameters
    )
    gradient = np.asarray(jax.grad(loss)(jnp.zeros(batch.completion_mask.shape)))
    return {
        "loss": value,
        "tokens": np.array([np.count_nonzero(gradient)]),
        "gradient": gradient[np.asarray(batch.completion_mask)],
        **_tensors("gradients", gradients, work),
    }


def _optimizer(learning_rate: float):
    settings = cases.OPTIMIZER | dict(
        learning_rate=learning_rate,
        vision_lr_scale=1.0,
        schedule="linear",
        warmup_updates=0,
        end_lr_ratio=0.0,
    )
    return make_optimizer(ConfigDict(settings), cases.STEPS)


def _trajectory(work: Work, state: TrainState, metrics: list[dict]) -> dict:
    return {
        "losses": np.array([float(each["loss"]) for each in metrics]),
        "grad_norms": np.array([float(each["grad_norm"]) for each in metrics]),
        **_tensors("weights", state.parameters, work),
    }


def sft_run(work: Work) -> dict:
    """20 SFT steps over the samples in order."""
    graph, parameters = load_model(work)
    samples = cases.samples(work, cases.SFT_SAMPLES, seed=3)
    batches = split_batch(make_batch(work, samples, completions=True), cases.SFT_BATCH)
    optimizer = _optimizer(cases.OPTIMIZER["learning_rate"])
    state = init_state(parameters, optimizer, freeze=(), lora=False)
    update = package_sft.make_sft_update(graph, optimizer)
    metrics = []
    for number in range(cases.STEPS):
        batch = batches[number % len(batches)]
        microbatches = split_microbatches(batch, batch.completion_mask, cases.MICROBATCHES)
        state, measured = update(state, microbatches)
        metrics.append(measured)
    return _trajectory(work, state, metrics)


def _experience(batch: Batch, number: int, end: int) -> package_grpo.Experience:
    """Rollout `number`: given completions and rewards, log-probabilities not yet filled in."""
    ids, mask = cases.completions(cases.GRPO_BATCH * cases.GROUP, end, seed=100 + number)
    shape = (cases.GRPO_BATCH, cases.GROUP, -1)
    rewards = jnp.asarray(cases.rewards(number))
    return package_grpo.Experience(
        tiles=batch.tiles,
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=jnp.asarray(ids.reshape(shape)),
        completion_mask=jnp.asarray(mask.reshape(shape)),
        advantages=package_advantages.group_advantages(rewards),
        old_logprobs=None,
        ref_logprobs=None,
    )


def _grpo_batches(work: Work) -> list[Batch]:
    batch = make_batch(work, cases.samples(work, cases.GRPO_SAMPLES, seed=4))
    return split_batch(batch, cases.GRPO_BATCH)


def grpo(work: Work) -> dict:
    """`policy_loss` of the whole model, off policy, with a reference; each parameter's gradient."""
    graph, parameters = load_model(work)
    batch = jax.device_put(_grpo_batches(work)[0])
    experience = jax.device_put(_experience(batch, 0, open_tokenizer(work).end))
    ids, mask = experience.completion_ids, experience.completion_mask

    def logprobs(parameters):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, ids, cases.TEMPERATURE)[0]

    def loss(logprobs, ref, old):
        return package_losses.policy_loss(
            logprobs,
            old,
            ref,
            experience.advantages,
            mask,
            loss_type=cases.LOSS_TYPE,
            beta=cases.BETA,
        )[0]

    shift = np.random.default_rng(5).normal(size=(2, mask.shape[0] * mask.shape[1], mask.shape[2]))
    shift = shift.astype(np.float32).reshape(2, *mask.shape)
    start = jax.jit(logprobs)(parameters)
    others = start + 0.2 * shift[0], start + 0.3 * shift[1]
    loss_and_gradients = jax.jit(
        jax.value_and_grad(lambda parameters, *others: loss(logprobs(parameters), *others))
    )
    value, gradients = loss_and_gradients(parameters, *others)
    gradient = np.asarray(jax.grad(loss)(start, *others))[np.asarray(mask)]
    return {"loss": value, "gradient": gradient, **_tensors("gradients", gradients, work)}


def grpo_run(work: Work) -> dict:
    """20 GRPO updates, two on each rollout."""
    graph, parameters = load_model(work)
    batches, end = _grpo_batches(work), open_tokenizer(work).end
    optimizer = _optimizer(cases.GRPO_LEARNING_RATE)
    # The updates donate their parameters, and the reference still needs the first ones.
    state = init_state(jax.tree.map(jnp.copy, parameters), optimizer, freeze=(), lora=False)
    logprobs = jax.jit(
        functools.partial(package_grpo.logprobs, graph=graph, temperature=cases.TEMPERATURE)
    )
    update = package_grpo.make_grpo_update(
        graph,
        optimizer,
        temperature=cases.TEMPERATURE,
        loss_type=cases.LOSS_TYPE,
        beta=cases.BETA,
    )
    metrics = []
    for number in range(cases.STEPS // cases.UPDATES_PER_ROLLOUT):
        batch = batches[number % len(batches)]
        experience = _experience(batch, number, end)
        experience = experience._replace(
            old_logprobs=logprobs(state.parameters, batch, experience.completion_ids),
            ref_logprobs=logprobs(parameters, batch, experience.completion_ids),
        )
        for _ in range(cases.UPDATES_PER_ROLLOUT):
            state, measured = update(state, [experience])
            metrics.append(measured)
    return _trajectory(work, state, metrics)


SECTIONS = {section.__name__: section for section in (sft, grpo, sft_run, grpo_run)}
