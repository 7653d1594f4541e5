"""What a step of each method does with a batch, as the loop sees it."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from aesthetic_jax.data.pipeline import Batch, trim
from aesthetic_jax.data.tokenizer import ChatTokenizer
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.rl.advantages import group_advantages
from aesthetic_jax.training import grpo
from aesthetic_jax.training.flops import forward_flops
from aesthetic_jax.training.mesh import gather_rows, local_rows, put_rows, row_shards, select_rows, take_local
from aesthetic_jax.training.run import Run
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import Parameters, TrainState, part_rows

# (state, batch, number of the step) -> (state, metrics, exact rate of each prompt or None); the metrics hold `tokens` and
# `flops`, the work that the step was
Step = Callable[[TrainState, Batch, int], tuple[TrainState, dict[str, Any], np.ndarray | None]]


def row_sizes(architecture: InternVLConfig, batch: Batch, completion_mask: np.ndarray) -> dict[str, np.ndarray]:
    """What hosts tell each other of their rows: image tiles, and tokens of each prompt and each completion."""
    return {
        "tiles": (batch.prompt_ids == architecture.image_token).sum(1) // architecture.tokens_per_tile,
        "prompt": batch.prompt_mask.sum(1),
        "completion": completion_mask.sum(2),
    }


def make_sft(run: Run) -> Step:
    """SFT as the loop sees it."""
    config, architecture, mesh = run.config, run.architecture, run.mesh
    update = make_sft_update(run.graph, run.optimizer, run.shardings)
    vision_passes = 1 if "vision" in config.model.freeze else 3
    mine = local_rows(mesh, config.batch_size)

    def step(state: TrainState, batch: Batch, _):
        sizes = gather_rows(mesh, row_sizes(architecture, batch, batch.completion_mask))
        prompt, completion = sizes["prompt"], sizes["completion"].max(1)
        parts = []
        for rows in part_rows(completion, config.micro_batches, row_shards(mesh)):
            here = np.searchsorted(mine, rows[np.isin(rows, mine)])
            part = jax.tree.map(lambda x, here=here: x[here], batch)
            parts.append(
                put_rows(mesh, trim(part, config.data, (int(prompt[rows].max()), int(completion[rows].max()))))
            )
        state, metrics = update(state, parts)
        forward = forward_flops(architecture, sizes["tiles"].sum(), prompt, sizes["completion"])
        work = {
            "tokens": prompt.sum() + completion.sum(),
            "flops": vision_passes * forward.vision + 3 * forward.language,
        }
        return state, metrics | work, None

    return step


def make_grpo(run: Run, tokenizer: ChatTokenizer, reference: Parameters | None) -> Step:
    """GRPO as the loop sees it: rollout, rewards on the host, then num_iterations updates.

    Args:
        reference: parameters of the reference model; None where beta is 0.
    """
    config, architecture, mesh = run.config, run.architecture, run.mesh
    settings = config.grpo
    mine = local_rows(mesh, config.batch_size)
    sample, vision_features, reference_logprobs = grpo.make_inference(
        config, run.graph, mesh, tokenizer.end, tokenizer.pad
    )
    update = grpo.make_update_of(run)
    key = jax.random.key(config.seed)
    frozen_vision = "vision" in config.model.freeze
    language_passes = 1 + (reference is not None) + 3 * settings.num_iterations
    vision_passes = 1 if frozen_vision else language_passes

    def step(state: TrainState, loaded: Batch, number: int):
        began = time.perf_counter()
        longest = int(gather_rows(mesh, loaded.prompt_mask.sum(1)).max())
        batch = put_rows(mesh, trim(loaded, config.data, (longest, 0)))
        if frozen_vision:  # rollout, reference and every update see the same
            batch = batch._replace(tiles=vision_features(state.parameters, batch.tiles))
        rollout = jax.block_until_ready(sample(state.parameters, batch, jax.random.fold_in(key, number)))
        sampled = time.perf_counter()
        ids, mask, ended = (take_local(x) for x in (rollout.ids, rollout.mask, rollout.ended))
        scores = grpo.score(grpo.decode(ids, mask, tokenizer), loaded, config.reward, number / config.num_steps)
        told = {"scores": scores, "ended": ended, "sizes": row_sizes(architecture, loaded, mask)}
        told = gather_rows(mesh, told)  # from all hosts, in the order of the batch
        scores, sizes = told["scores"], told["sizes"]
        advantages = np.asarray(group_advantages(scores.reward, scale_rewards=settings.scale_rewards))
        scored = time.perf_counter()
        experience = grpo.Experience(
            tiles=batch.tiles,
            prompt_ids=batch.prompt_ids,
            prompt_mask=batch.prompt_mask,
            completion_ids=rollout.ids,
            completion_mask=rollout.mask,
            advantages=put_rows(mesh, advantages[mine]),
            old_logprobs=rollout.logprobs if settings.num_iterations > 1 else None,
            ref_logprobs=None,
        )
        if reference is not None and settings.num_iterations > 1:  # a single update computes them itself
            experience = experience._replace(ref_logprobs=reference_logprobs(reference, batch, rollout.ids))
        longest = sizes["completion"].max(1)
        parts = []
        for rows in part_rows(longest, config.micro_batches, row_shards(mesh)):
            part = experience if config.micro_batches == 1 else select_rows(mesh, experience, rows)
            parts.append(grpo.trim_completions(part, config.data.completion_buckets, int(longest[rows].max())))
        for _ in range(settings.num_iterations):
            state, metrics = update(state, parts, reference)
        state = jax.block_until_ready(state)
        times = {"rollout_s": sampled - began, "reward_s": scored - sampled, "update_s": time.perf_counter() - scored}
        forward = forward_flops(architecture, sizes["tiles"].sum(), sizes["prompt"], sizes["completion"])
        work = {
            "tokens": sizes["prompt"].sum() + sizes["completion"].sum(),
            "flops": vision_passes * forward.vision + language_passes * forward.language,
        }
        rolled = grpo.rollout_metrics(sizes["completion"], told["ended"], scores)
        return state, metrics | rolled | times | work, scores.exact.mean(axis=1)

    return step
