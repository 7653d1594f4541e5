"""Stage 2, group relative policy optimisation: the host step and the pure functions it calls.

A step samples a group of completions per prompt, rewards them on the host, and makes
`grpo.num_iterations` optimiser updates on them. `collect_experience` is the first half,
`run_updates` the second.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from aesthetic_jax.data.pipeline import Batch, trim
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.models.internvl import InternVL, Parameters
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.rl.advantages import group_advantages
from aesthetic_jax.rl.losses import policy_loss
from aesthetic_jax.rl.rewards import Scores, compute_rewards
from aesthetic_jax.rl.rollouts import Sampling, decode, rollout
from aesthetic_jax.training.mesh import (
    gather_rows,
    local_rows,
    put_rows,
    row_shards,
    rows_sharding,
    select_rows,
    take_local,
)
from aesthetic_jax.training.setup import TrainSetup
from aesthetic_jax.training.state import TrainState
from aesthetic_jax.training.step import RowSizes, StepResult, TrainStep, count_work, row_sizes
from aesthetic_jax.training.update import Update, make_update, microbatch_rows

_LOSS_SETTINGS = (  # fields of config.grpo that `policy_loss` takes
    "loss_type",
    "epsilon",
    "epsilon_high",
    "delta",
    "beta",
    "importance_sampling_level",
    "use_bias_correction_kl",
)


class Experience(NamedTuple):
    """Input of an update: prompts, completions and their advantages."""

    tiles: Array | None  # [B, N, X, X, 3] uint8; None where there are features
    prompt_ids: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    completion_ids: Int[Array, "B G T"]
    completion_mask: Bool[Array, "B G T"]
    advantages: Float[Array, "B G"]
    # None: this is the first update on the rollout, and the ratio is 1.
    old_logprobs: Float[Array, "B G T"] | None
    # None: beta is 0, or the update computes them itself.
    ref_logprobs: Float[Array, "B G T"] | None
    features: Array | None = None  # [B, N, Q, C], of `vision_features`


class Inference(NamedTuple):
    """The compiled programs of a step that compute no gradients."""

    rollout: Callable  # (parameters, batch, key) -> Rollout
    vision_features: Callable  # (parameters, tiles) -> features
    logprobs: Callable  # (parameters, batch, completion_ids) -> log-probabilities


class Collected(NamedTuple):
    """An experience on the mesh, and facts about its rows that all hosts share."""

    experience: Experience
    sizes: RowSizes
    scores: Scores
    ended: Bool[np.ndarray, "B G"]
    metrics: dict[str, Any]  # seconds that rollout and rewards took


# --- Pure functions ---


def vision_features(
    parameters: Parameters, tiles: Array, *, graph: nnx.GraphDef
) -> Float[Array, "B N Q C"]:
    """A frozen vision tower's features of a batch's tiles, computed once per step."""
    return nnx.merge(graph, parameters).vision_features(tiles)


def logprobs(
    parameters: Parameters,
    batch: Batch | Experience,
    completion_ids: Int[Array, "B G T"],
    *,
    graph: nnx.GraphDef,
    temperature: float,
) -> Float[Array, "B G T"]:
    """Log-probabilities of completions under a model's parameters, such as the reference's."""
    model = nnx.merge(graph, parameters)
    prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask, batch.features)
    return completion_logprobs(model, prompt, completion_ids, temperature)[0]


def trim_completions(
    experience: Experience, buckets: Sequence[int], longest: int | None = None
) -> Experience:
    """Cuts common padding down to the smallest bucket: few shapes, so few compilations.

    Args:
        buckets: lengths in tokens, ascending.
        longest: tokens of the longest completion; None: found in the mask.
    """
    if longest is None:
        longest = int(experience.completion_mask.any((0, 1)).sum())
    full_length = experience.completion_ids.shape[-1]
    length = next((bucket for bucket in buckets if longest <= bucket), full_length)
    names = ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs")
    arrays = {name: getattr(experience, name) for name in names}
    return experience._replace(
        **{name: None if x is None else x[..., :length] for name, x in arrays.items()}
    )


def make_grpo_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float,
    shardings: TrainState | None = None,
    **loss_settings: Any,
) -> Update:
    """One optimiser update on microbatches of an Experience.

    The update computes the reference's log-probabilities itself where the experience has none and
    a reference is given. With neither there is no KL.

    Args:
        temperature: sampling temperature of the completions.
        shardings: as in `make_update`.
        loss_settings: as in `policy_loss`.
    """

    def loss_fn(
        model: InternVL, microbatch: Experience, tokens: Array, reference: Parameters | None
    ):
        completion_ids, mask = microbatch.completion_ids, microbatch.completion_mask
        ref_logprobs = microbatch.ref_logprobs
        if ref_logprobs is None and reference is not None:
            ref_logprobs = logprobs(
                reference, microbatch, completion_ids, graph=graph, temperature=temperature
            )
        prompt = model.prefill(
            microbatch.tiles, microbatch.prompt_ids, microbatch.prompt_mask, microbatch.features
        )
        new_logprobs, entropy = completion_logprobs(model, prompt, completion_ids, temperature)
        loss, metrics = policy_loss(
            new_logprobs,
            microbatch.old_logprobs,
            ref_logprobs,
            microbatch.advantages,
            mask,
            num_items_in_batch=tokens,
            **loss_settings,
        )
        metrics["entropy"] = jnp.where(mask, entropy, 0.0).sum() / jnp.maximum(mask.sum(), 1)
        # Metrics are means over the microbatch's tokens; their mean over microbatches must be
        # one over the batch's tokens.
        share = mask.sum() / tokens
        return loss, {
            name: x if name.endswith("/max") else share * x for name, x in metrics.items()
        }

    return make_update(loss_fn, graph=graph, optimizer=optimizer, shardings=shardings)


def make_update_for(setup: TrainSetup) -> Update:
    """The GRPO update of a setup's config."""
    config = setup.config
    return make_grpo_update(
        setup.graph,
        setup.optimizer,
        temperature=config.grpo.temperature,
        shardings=setup.shardings,
        max_completion_length=config.max_completion_length,
        **{name: config.grpo[name] for name in _LOSS_SETTINGS},
    )


def make_inference(
    config: ConfigDict, graph: nnx.GraphDef, mesh: Mesh, end_token: int, pad_token: int
) -> Inference:
    """Rollout, vision features and reference log-probabilities, compiled for a config and mesh."""
    compile_by_rows = functools.partial(jax.jit, out_shardings=rows_sharding(mesh))
    temperature, replicate = config.grpo.temperature, config.mesh.replicate_for_rollout
    sampling = Sampling(
        group=config.grpo.num_generations,
        max_length=config.max_completion_length,
        end_token=end_token,
        pad_token=pad_token,
        temperature=temperature,
    )
    programs = (
        functools.partial(rollout, graph=graph, sampling=sampling, replicate=replicate),
        functools.partial(vision_features, graph=graph),
        functools.partial(logprobs, graph=graph, temperature=temperature),
    )
    return Inference(*map(compile_by_rows, programs))


# --- The host step ---


def make_grpo_step(
    setup: TrainSetup, tokenizer: ChatTokenizer, reference: Parameters | None
) -> TrainStep:
    """The step that the training loop calls with this host's rows of a batch.

    Args:
        reference: parameters of the reference model; None where beta is 0.
    """
    config = setup.config
    inference = make_inference(config, setup.graph, setup.mesh, tokenizer.end, tokenizer.pad)
    update = make_update_for(setup)
    language_passes = 1 + (reference is not None) + 3 * config.grpo.num_iterations
    vision_passes = 1 if "vision" in config.model.freeze else language_passes

    def step(state: TrainState, batch: Batch, number: int) -> tuple[TrainState, StepResult]:
        collected = collect_experience(
            setup, inference, tokenizer, state.parameters, reference, batch, number
        )
        state, metrics = run_updates(setup, update, state, collected, reference)
        metrics |= rollout_metrics(collected) | collected.metrics
        work = count_work(setup.architecture, collected.sizes, vision_passes, language_passes)
        return state, StepResult(metrics, work, collected.scores.exact.mean(axis=1))

    return step


def collect_experience(
    setup: TrainSetup,
    inference: Inference,
    tokenizer: ChatTokenizer,
    parameters: Parameters,
    reference: Parameters | None,
    local_batch: Batch,
    number: int,
) -> Collected:
    """Samples completions of a batch's prompts and rewards them.

    Args:
        local_batch: this host's rows.
        number: step number; decides the noise and the reward's annealing.
    """
    config, mesh = setup.config, setup.mesh
    started = time.perf_counter()
    longest = int(gather_rows(mesh, local_batch.prompt_mask.sum(1)).max())
    batch = put_rows(mesh, trim(local_batch, config.data, (longest, 0)))
    if "vision" in config.model.freeze:  # rollout, reference and every update share the features
        features = inference.vision_features(parameters, batch.tiles)
        batch = batch._replace(tiles=None, features=features)
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    sampled = jax.block_until_ready(inference.rollout(parameters, batch, key))
    sampled_at = time.perf_counter()

    ids, mask, ended = (take_local(x) for x in (sampled.ids, sampled.mask, sampled.ended))
    scores = compute_rewards(
        decode(ids, mask, tokenizer),
        local_batch.answer,
        local_batch.num_options,
        config.reward,
        number / config.num_steps,
    )
    sizes = row_sizes(setup.architecture, local_batch, mask)
    scores, ended, sizes = gather_rows(mesh, (scores, ended, sizes))
    advantages = np.asarray(
        group_advantages(scores.reward, scale_rewards=config.grpo.scale_rewards)
    )
    several_updates = config.grpo.num_iterations > 1
    seconds = {
        "rollout_s": sampled_at - started,
        "reward_s": time.perf_counter() - sampled_at,
    }
    experience = Experience(
        tiles=batch.tiles,
        features=batch.features,
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=sampled.ids,
        completion_mask=sampled.mask,
        advantages=put_rows(mesh, advantages[local_rows(mesh, config.batch_size)]),
        old_logprobs=sampled.logprobs if several_updates else None,
        ref_logprobs=None,
    )
    if reference is not None and several_updates:  # a single update computes them itself
        ref_logprobs = inference.logprobs(reference, batch, sampled.ids)
        experience = experience._replace(ref_logprobs=ref_logprobs)
    return Collected(experience, sizes, scores, ended, seconds)


def run_updates(
    setup: TrainSetup,
    update: Update,
    state: TrainState,
    collected: Collected,
    reference: Parameters | None,
) -> tuple[TrainState, dict[str, Any]]:
    """Makes `grpo.num_iterations` updates on an experience; metrics are the last one's."""
    config, mesh = setup.config, setup.mesh
    started = time.perf_counter()
    longest = collected.sizes.completion.max(1)
    microbatches = []
    for rows in microbatch_rows(longest, config.micro_batches, row_shards(mesh)):
        microbatch = collected.experience
        if config.micro_batches > 1:
            microbatch = select_rows(mesh, microbatch, rows)
        buckets = config.data.completion_buckets
        microbatches.append(trim_completions(microbatch, buckets, int(longest[rows].max())))
    metrics = {}
    for _ in range(config.grpo.num_iterations):
        state, metrics = update(state, microbatches, reference)
    state = jax.block_until_ready(state)
    return state, metrics | {"update_s": time.perf_counter() - started}


def rollout_metrics(collected: Collected) -> dict[str, float]:
    """Metrics of a rollout: rewards, groups without a signal, lengths."""
    scores, lengths = collected.scores, collected.sizes.completion
    metrics = {
        "reward": scores.reward.mean(),
        "reward/dpa": scores.dpa.mean(),
        "reward/format": scores.format.mean(),
        "reward/std": scores.reward.std(axis=1, ddof=1).mean(),
        "exact": scores.exact.mean(),
        "frac_reward_zero_std": (np.ptp(scores.reward, axis=1) == 0).mean(),
        "groups/no_exact": (scores.exact.max(axis=1) == 0).mean(),
        "groups/mixed": (np.ptp(scores.exact, axis=1) > 0).mean(),
        "completions/mean_length": lengths.mean(),
        "completions/clipped_ratio": 1 - collected.ended.mean(),
    }
    return {name: float(value) for name, value in metrics.items()}
