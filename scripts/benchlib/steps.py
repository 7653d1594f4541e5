"""Benchmarks of training's steps: the GRPO update, the rollout and the SFT step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aesthetic_jax.training.flops import batch_flops, forward_flops
from benchlib import bandwidth, inputs, programs
from benchlib.sizes import Options, Size
from benchlib.timing import median_seconds, program_memory, rates


def _time_update(
    update: programs.Update,
    parameters: programs.Parameters,
    microbatches: list,
    reference: programs.Parameters | None,
    options: Options,
) -> tuple[float, dict[str, int]]:
    """Median seconds of an update and the bytes of its gradient program."""
    state = programs.train_state(parameters)
    gradient_inputs = (state.trained, state.frozen, microbatches[0], jnp.float32(1), reference)
    memory = program_memory(update.gradient.lower(*gradient_inputs).compile())

    def run():
        nonlocal state
        state, metrics = update(state, microbatches, reference)
        return state, metrics

    return median_seconds(run, options), memory


def _group_shapes(size: Size, options: Options) -> dict[str, int]:
    return dict(prompt=size.prompt, completion=size.completion, group=options.group)


def _group_forward_flops(size: Size, options: Options) -> float:
    """FLOPs of a forward pass over one prompt's group."""
    completions = np.full((1, options.group), size.completion)
    return sum(forward_flops(size.config, size.images, np.array([size.prompt]), completions))


def grpo_update(size: Size, options: Options) -> dict[str, Any]:
    """One update on one prompt's group, everything trained, with a reference model."""
    parameters = programs.random_parameters(size.config)
    reference = jax.tree.map(jnp.copy, parameters)
    experience = programs.make_experience(size, options.group)
    seconds, memory = _time_update(
        programs.grpo_update(size), parameters, [experience], reference, options
    )
    flops = 4 * _group_forward_flops(size, options)  # forward, backward, reference's forward
    tokens = size.prompt + options.group * size.completion
    measured = rates(size, seconds, flops, tokens)
    return dict(update_s=seconds) | _group_shapes(size, options) | measured | memory


def rollout(size: Size, options: Options) -> dict[str, Any]:
    """Prefill and sampling of one prompt's group, each completion to its full length."""
    parameters = programs.random_parameters(size.config)
    parameters = jax.tree.map(lambda x: x.astype(size.config.dtype), parameters)
    sample = programs.rollout(size, options.group)
    sample_inputs = parameters, jax.device_put(programs.make_batch(size)), jax.random.key(0)
    memory = program_memory(sample.lower(*sample_inputs).compile())
    seconds = median_seconds(lambda: sample(*sample_inputs), options)
    tokens = options.group * size.completion
    measured = rates(size, seconds, _group_forward_flops(size, options), tokens)
    read = bandwidth.decoding_bytes(size, parameters["language"], options.group)
    bytes_per_s = bandwidth.read_bandwidth()
    share = dict(
        decoding_bytes=read,
        bandwidth_bytes_per_s=bytes_per_s,
        bandwidth_share=round(read / bytes_per_s / seconds, 4),
    )
    return dict(rollout_s=seconds) | _group_shapes(size, options) | measured | share | memory


def sft_step(size: Size, options: Options) -> dict[str, Any]:
    """One step on samples of mixed lengths, in microbatches of similar length."""
    texts, completions = inputs.sft_lengths(size)
    batch = programs.make_batch(size, texts, completions)
    microbatches = programs.make_microbatches(size, batch, options.microbatches)
    parameters = programs.random_parameters(size.config)
    seconds, memory = _time_update(
        programs.sft_update(size), parameters, jax.device_put(microbatches), None, options
    )
    forward = batch_flops(size.config, batch.prompt_ids, batch.prompt_mask, batch.completion_mask)
    tokens = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    padded = sum(x.prompt_mask.size + x.completion_mask.size for x in microbatches)
    shapes = dict(
        samples=len(texts),
        tokens=tokens,
        completion_tokens=sum(completions),
        padding=1 - tokens / padded,
    )
    return dict(step_s=seconds) | shapes | rates(size, seconds, 3 * sum(forward), tokens) | memory
