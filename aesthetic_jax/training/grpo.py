"""Stage 2: group relative policy optimisation. Rollout and update are pure functions; rewards come between, on the host."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key
from ml_collections import ConfigDict

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.models.logprobs import completion_logprobs
from aesthetic_jax.models.sharding import hold_whole
from aesthetic_jax.rl.losses import policy_loss
from aesthetic_jax.rl.rewards import dpa_reward, format_reward, parse_answer
from aesthetic_jax.rl.rollouts import Rollout, sample_completions
from aesthetic_jax.training.mesh import rows_sharding
from aesthetic_jax.training.run import Run
from aesthetic_jax.training.state import Parameters, TrainState, Update, make_update


class Experience(NamedTuple):
    """What an update learns from: prompts, their completions, and how good these were."""

    tiles: Array  # [B, N, X, X, 3], or [B, N, Q, C] from `vision_features`
    prompt_ids: Int[Array, "B P"]
    prompt_mask: Bool[Array, "B P"]
    completion_ids: Int[Array, "B G T"]
    completion_mask: Bool[Array, "B G T"]
    advantages: Float[Array, "B G"]
    old_logprobs: Float[Array, "B G T"] | None  # None: this is the first update on the rollout, the ratio is 1
    ref_logprobs: Float[Array, "B G T"] | None  # None: beta is 0, or the update computes them itself


class Scores(NamedTuple):
    """Rewards of a rollout on the host and their parts; each [B, G] float32."""

    reward: np.ndarray
    dpa: np.ndarray
    format: np.ndarray
    exact: np.ndarray


def vision_features(parameters: Parameters, tiles: Array, *, graph: nnx.GraphDef) -> Float[Array, "B N Q C"]:
    """What a frozen vision tower makes of a batch's tiles; takes their place in the batch for all that follows."""
    return nnx.merge(graph, parameters).vision_features(tiles)


def rollout(
    parameters: Parameters,
    batch: Batch,
    key: Key[Array, ""],
    *,
    graph: nnx.GraphDef,
    hold_layers: bool = True,
    **sampling,
) -> Rollout:
    """Completions of a batch's prompts.

    Args:
        hold_layers: `config.mesh.hold_layers`.
        sampling: as in `sample_completions`.
    """
    model = nnx.merge(graph, parameters)
    if hold_layers:
        model.language.layers = hold_whole(model.language.layers, model.config.dtype)
    prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
    return sample_completions(model, prompt, batch.index, key, **sampling)


def trim_completions(experience: Experience, buckets: Sequence[int], longest: int | None = None) -> Experience:
    """Cuts padding that all completions end with down to the smallest bucket: few shapes, so few compilations.

    Args:
        experience: to cut.
        buckets: lengths, ascending.
        longest: tokens of the longest completion; None: found in the mask.
    """
    if longest is None:
        longest = int(experience.completion_mask.any((0, 1)).sum())
    length = next((bucket for bucket in buckets if longest <= bucket), experience.completion_ids.shape[-1])
    names = ("completion_ids", "completion_mask", "old_logprobs", "ref_logprobs")
    arrays = {name: getattr(experience, name) for name in names}
    return experience._replace(**{name: None if x is None else x[..., :length] for name, x in arrays.items()})


def logprobs(
    parameters: Parameters,
    batch: Batch | Experience,
    completion_ids: Int[Array, "B G T"],
    *,
    graph: nnx.GraphDef,
    temperature: float,
) -> Float[Array, "B G T"]:
    """Log-probabilities of completions under the reference model's parameters."""
    model = nnx.merge(graph, parameters)
    prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
    return completion_logprobs(model, prompt, completion_ids, temperature)[0]


def gold_letters(answer: int) -> frozenset[str]:
    """The letters whose bits are set in Batch.answer."""
    return frozenset(letter for bit, letter in enumerate("ABCDEFGH") if answer >> bit & 1)


def decode(ids: Int[np.ndarray, "B G T"], mask: Bool[np.ndarray, "B G T"], tokenizer: ChatTokenizer) -> list[list[str]]:
    """Texts of a rollout, [B][G], end tokens cut off."""
    return [
        [tokenizer.decode(row[keep]) for row, keep in zip(*group, strict=True)] for group in zip(ids, mask, strict=True)
    ]


def score(texts: Sequence[Sequence[str]], batch: Batch, config, progress: float) -> Scores:
    """Rewards of completions.

    Args:
        texts: [B][G].
        config: the run's `reward` settings.
        progress: share of training that is done, in [0, 1]; with dpa_anneal the reward moves with it from the variant to
            exact match.
    """
    parts = np.zeros((4, len(texts), len(texts[0])), np.float32)
    anneal = progress if config.dpa_anneal else 0.0
    for b, group in enumerate(texts):
        gold, options = gold_letters(int(batch.answer[b])), int(batch.num_options[b])
        for g, text in enumerate(group):
            predicted = parse_answer(text, options)
            exact = dpa_reward(predicted, gold, options, "exact")
            dpa = (1 - anneal) * dpa_reward(predicted, gold, options, config.variant) + anneal * exact
            form = format_reward(text, options)
            total = config.accuracy_weight * dpa + config.format_weight * form
            parts[:, b, g] = total, dpa, form, exact
    return Scores(*parts)


def make_grpo_update(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    temperature: float,
    shardings: TrainState | None = None,
    **loss_settings,
) -> Update:
    """One optimiser update on parts of an Experience.

    The reference's log-probabilities are computed in the same program where the experience has none and a reference is
    given; with neither there is no KL.

    Args:
        shardings: as in `make_update`.
        loss_settings: as in `policy_loss`.
    """

    def loss(model: InternVL, part: Experience, tokens: Array, reference: Parameters | None):
        completion_ids, ref_logprobs, mask = part.completion_ids, part.ref_logprobs, part.completion_mask
        if ref_logprobs is None and reference is not None:
            ref_logprobs = logprobs(reference, part, completion_ids, graph=graph, temperature=temperature)
        prompt = model.prefill(part.tiles, part.prompt_ids, part.prompt_mask)
        new_logprobs, entropy = completion_logprobs(model, prompt, completion_ids, temperature)
        value, metrics = policy_loss(
            new_logprobs,
            part.old_logprobs,
            ref_logprobs,
            part.advantages,
            mask,
            num_items_in_batch=tokens,
            **loss_settings,
        )
        metrics["entropy"] = jnp.where(mask, entropy, 0.0).sum() / jnp.maximum(mask.sum(), 1)
        share = mask.sum() / tokens  # metrics are means over the part's tokens, to be averaged over parts
        return value, {name: x if name.endswith("/max") else share * x for name, x in metrics.items()}

    return make_update(loss, graph=graph, optimizer=optimizer, shardings=shardings)


def make_update_of(run: Run) -> Update:
    """The update that a run's config means."""
    config = run.config
    names = "loss_type epsilon epsilon_high delta beta importance_sampling_level use_bias_correction_kl".split()
    return make_grpo_update(
        run.graph,
        run.optimizer,
        temperature=config.grpo.temperature,
        shardings=run.shardings,
        max_completion_length=config.max_completion_length,
        **{name: config.grpo[name] for name in names},
    )


def make_inference(
    config: ConfigDict, graph: nnx.GraphDef, mesh: Mesh, end_token: int, pad_token: int
) -> tuple[Callable, Callable, Callable]:
    """`rollout`, `vision_features` and `logprobs`, compiled for a run's config and mesh."""
    by_rows = functools.partial(jax.jit, out_shardings=rows_sharding(mesh))
    temperature = config.grpo.temperature
    sampling = dict(
        group=config.grpo.num_generations,
        max_length=config.max_completion_length,
        end_token=end_token,
        pad_token=pad_token,
        temperature=temperature,
    )
    return (
        by_rows(functools.partial(rollout, graph=graph, hold_layers=config.mesh.hold_layers, **sampling)),
        by_rows(functools.partial(vision_features, graph=graph)),
        by_rows(functools.partial(logprobs, graph=graph, temperature=temperature)),
    )


def rollout_metrics(
    lengths: Int[np.ndarray, "B G"], ended: Bool[np.ndarray, "B G"], scores: Scores
) -> dict[str, float]:
    """What a rollout says about the policy: rewards, exactness, groups that teach nothing, lengths.

    Args:
        lengths: tokens of each completion.
        ended: whether it ended by itself.
        scores: its rewards.
    """
    return {
        "reward": scores.reward.mean(),
        "reward/dpa": scores.dpa.mean(),
        "reward/format": scores.format.mean(),
        "reward/std": scores.reward.std(axis=1, ddof=1).mean(),
        "exact": scores.exact.mean(),
        "groups/zero_spread": (np.ptp(scores.reward, axis=1) == 0).mean(),
        "groups/no_exact": (scores.exact.max(axis=1) == 0).mean(),
        "completion/length": lengths.mean(),
        "completion/cut_off": 1 - ended.mean(),
    }
