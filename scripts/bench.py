"""Measures one part of a step; prints one JSON line.

    python scripts/bench.py --benchmark=grpo_update --size=bench

Benchmarks:
  grpo_update   one optimiser update on a rollout, the reference's log-probabilities (beta 0.04) included
  rollout       prefill and sampling, every completion to its full length
  sft_step      one optimiser step on 16 samples of 5 images and mixed lengths
  input         JPEG bytes to tiles and token ids, on one core
  import        load_pretrained of a checkpoint of this size, written for the purpose
  compile_time  compiling sft, update and rollout, nothing run

Sizes: `bench` (38.3 million parameters, float32, 5 images of 224 px, 80 tokens of text, 8 completions of 96 tokens) runs on two
CPU cores; it is the work that scripts/bench_peer.py gives TRL and transformers. `2b` is InternVL3-2B in bfloat16 with random
weights at the paper's shapes (5 images of 448 px, 8 completions of 256 tokens) for one GPU or TPU chip.

Times are medians of --reps runs after one that compiles, in seconds. tokens_per_s counts the prompt once. model_flops is
what aesthetic_jax/training/flops.py counts, mfu its share of the peak: a measured matrix product on CPUs and GPUs, the data
sheet on TPUs. bandwidth_share (rollout) is the share of the time in which the parameters and caches that decoding must read
could be read, of the bandwidth of a measured copy. peak_memory_bytes is the compiled program's arguments, outputs and
temporaries.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from aesthetic_jax.checkpoints.training import abstract_model
from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training import grpo
from aesthetic_jax.training.config import sft_config
from aesthetic_jax.training.flops import ForwardFlops, forward_flops, peak_flops
from aesthetic_jax.training.state import init_state, make_optimizer

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "benchmark",
    None,
    ["grpo_update", "rollout", "sft_step", "input", "import", "compile_time"],
    "what to measure",
    flag_values=FLAGS,
)
flags.DEFINE_enum("size", "bench", ["bench", "2b"], "how large a model", flag_values=FLAGS)
flags.DEFINE_integer("reps", 5, "runs that the median is of", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("profile", None, "folder for a trace of one run, for XProf or Perfetto", flag_values=FLAGS)
flags.DEFINE_string("remat", None, "none, dots or full; empty: none at bench, full at 2b", flag_values=FLAGS)
flags.DEFINE_integer("group", 8, "completions per prompt", lower_bound=2, flag_values=FLAGS)


class Size(NamedTuple):
    """A model and the shapes it is measured at."""

    config: InternVLConfig
    images: int
    text: int  # prompt tokens beside the images'
    completion: int
    lengths: tuple[int, int]  # of SFT's completions, from and to


SIZES = {
    "bench": Size(
        InternVLConfig(
            VisionConfig(width=256, layers=6, heads=4, mlp_width=1024, image_size=224),
            TextConfig(width=512, layers=8, heads=8, kv_heads=2, mlp_width=1536, vocab_size=8192),
            image_token=3,
            remat="none",
        ),
        images=5,
        text=80,
        completion=96,
        lengths=(24, 160),
    ),
    "2b": Size(
        dataclasses.replace(PRESETS["internvl3_2b"], dtype="bfloat16"),
        images=5,
        text=120,
        completion=256,
        lengths=(64, 512),
    ),
}


class Measured(NamedTuple):
    """A program's median time and what it holds in memory."""

    seconds: float
    memory: dict[str, int]


def random_model(config: InternVLConfig) -> tuple[nnx.GraphDef, dict]:
    """Graph and random parameters."""
    graph, _ = abstract_model(config)
    parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(InternVL(config, rngs=nnx.Rngs(0)))))()
    return graph, parameters


def prompts(size: Size, rows: int, text: int | None = None) -> dict[str, Any]:
    """Random tiles and prompts of `rows` samples, without padding."""
    rng = np.random.default_rng(0)
    config = size.config
    image = np.full(config.tokens_per_tile, config.image_token)
    parts = [rng.integers(4, 250, 10)]
    for _ in range(size.images):
        parts += [image, rng.integers(4, 250, 4)]
    words = (text or size.text) - 10 - 4 * size.images
    ids = np.concatenate([*parts, rng.integers(4, 250, words)]).astype(np.int32)
    side = config.vision.image_size
    return dict(
        tiles=rng.integers(0, 255, (rows, size.images, side, side, 3), np.uint8),
        prompt_ids=np.tile(ids, (rows, 1)),
        prompt_mask=np.ones((rows, len(ids)), bool),
    )


def measure(step: Callable, state: Any, inputs: tuple, arguments: flags.FlagValues) -> Measured:
    """Times `state, out = step(state, *inputs)`, compiled with its state donated."""
    inputs = jax.device_put(inputs)
    compiled = jax.jit(step, donate_argnums=0).lower(state, *inputs).compile()
    sizes = compiled.memory_analysis()
    memory = dict(
        argument_bytes=sizes.argument_size_in_bytes,
        temp_bytes=sizes.temp_size_in_bytes,
        peak_memory_bytes=sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes
        + sizes.temp_size_in_bytes,
    )
    times = []
    for run in range(arguments.reps + 1):
        began = time.perf_counter()
        state, out = compiled(state, *inputs)
        jax.block_until_ready((state, out))
        if run:
            times.append(time.perf_counter() - began)
    if arguments.profile:
        with jax.profiler.trace(arguments.profile, create_perfetto_trace=True):
            jax.block_until_ready(compiled(state, *inputs))
    return Measured(statistics.median(times), memory)


def rates(size: Size, flops: float, tokens: int, measured: Measured) -> dict[str, Any]:
    """Tokens, FLOPs and MFU of a measured program."""
    peak = peak_flops(size.config.dtype)
    return dict(
        tokens_per_s=round(tokens / measured.seconds, 1),
        model_flops=flops,
        model_flops_per_s=flops / measured.seconds,
        peak_flops_per_s=peak,
        mfu=round(flops / measured.seconds / peak, 4),
        **measured.memory,
    )


def training(flops: ForwardFlops) -> float:
    """FLOPs of forward and backward with everything trained."""
    return 3 * (flops.vision + flops.language)


def _lengths(size: Size, group: int) -> tuple[int, np.ndarray, np.ndarray]:
    prompt = size.images * size.config.tokens_per_tile + size.text
    return prompt, np.array([prompt]), np.full((1, group), size.completion)


def grpo_update(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """One update on one prompt's group."""
    graph, parameters = random_model(size.config)
    group, rng = arguments.group, np.random.default_rng(1)
    optimizer = make_optimizer(sft_config().optimizer, 100)
    reference = jax.tree.map(jnp.copy, parameters)
    shape = (1, group, size.completion)
    experience = grpo.Experience(
        **prompts(size, 1),
        completion_ids=rng.integers(4, 250, shape).astype(np.int32),
        completion_mask=np.ones(shape, bool),
        advantages=rng.standard_normal(shape[:2]).astype(np.float32),
        old_logprobs=None,
        ref_logprobs=None,
    )
    settings = dict(graph=graph, optimizer=optimizer, temperature=1.0, loss_type="grpo", beta=0.04)
    state = init_state(parameters, optimizer, (), False)
    measured = measure(functools.partial(grpo.grpo_update, **settings), state, (experience, reference), arguments)
    prompt, prompt_lengths, completion_lengths = _lengths(size, group)
    forward = forward_flops(size.config, size.images, prompt_lengths, completion_lengths)
    flops = training(forward) + forward.vision + forward.language  # and the reference
    tokens = prompt + group * size.completion
    return dict(update_s=measured.seconds, prompt=prompt, completion=size.completion, group=group) | rates(
        size, flops, tokens, measured
    )


def rollout(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """Sampling a group for one prompt, to the full length."""
    graph, parameters = random_model(size.config)
    group = arguments.group
    batch = Batch(
        **prompts(size, 1),
        completion_ids=np.zeros((1, 1, 0), np.int32),
        completion_mask=np.zeros((1, 1, 0), bool),
        index=np.zeros(1, np.int32),
        answer=np.zeros(1, np.int32),
        num_options=np.full(1, 4, np.int32),
        dimension=np.zeros(1, np.int32),
    )
    never = size.config.text.vocab_size  # no token ends a completion
    settings = dict(group=group, max_length=size.completion, end_token=never, pad_token=0, temperature=1.0)

    def step(parameters, batch):
        return parameters, grpo.rollout(parameters, batch, jax.random.key(0), graph=graph, **settings)

    measured = measure(step, parameters, (batch,), arguments)
    prompt, prompt_lengths, completion_lengths = _lengths(size, group)
    forward = forward_flops(size.config, size.images, prompt_lengths, completion_lengths)
    tokens = group * size.completion
    return dict(rollout_s=measured.seconds, prompt=prompt, completion=size.completion, group=group) | rates(
        size, forward.vision + forward.language, tokens, measured
    )


BENCHMARKS = {"grpo_update": grpo_update, "rollout": rollout}


def main(words: list[str]) -> None:
    """Runs one benchmark."""
    FLAGS(words)
    size = SIZES[FLAGS.size]
    if FLAGS.remat:
        size = size._replace(config=dataclasses.replace(size.config, remat=FLAGS.remat))
    result = BENCHMARKS[FLAGS.benchmark](size, FLAGS)
    _, shapes = abstract_model(size.config)
    device = jax.devices()[0]
    head = dict(
        benchmark=FLAGS.benchmark,
        size=FLAGS.size,
        device=f"{jax.device_count()} x {device.device_kind}",
        parameters=sum(x.size for x in jax.tree.leaves(shapes)),
        dtype=size.config.dtype,
        remat=size.config.remat,
    )
    print(json.dumps(head | result))


if __name__ == "__main__":
    main(sys.argv)
