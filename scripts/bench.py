"""Measures one part of a step; prints one JSON line.

    python scripts/bench.py --benchmark=grpo_update --size=bench

Benchmarks:
  grpo_update   one optimiser update on a rollout, the reference's log-probabilities (beta 0.04) included
  rollout       prefill and sampling, every completion to its full length
  sft_step      one optimiser step on 16 samples of 5 images and mixed lengths
  input         JPEG bytes to tiles, on one core
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
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from PIL import Image

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.checkpoints.training import abstract_model
from aesthetic_jax.data.images import decode_image, tile_image
from aesthetic_jax.data.pipeline import Batch, trim
from aesthetic_jax.models.config import PRESETS, InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training import grpo
from aesthetic_jax.training.config import sft_config
from aesthetic_jax.training.flops import batch_flops, best_seconds, forward_flops, peak_flops
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import TrainState, Update, init_state, make_optimizer, split, split_rows

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
flags.DEFINE_string("remat", None, "none, dots or full; empty: the size's", flag_values=FLAGS)
flags.DEFINE_integer("parts", 4, "that sft_step cuts its 16 samples into", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("vocabulary", None, "rows of the embedding and the head; empty: the size's", flag_values=FLAGS)
flags.DEFINE_integer("group", 8, "completions per prompt", lower_bound=2, flag_values=FLAGS)


class Buckets(NamedTuple):
    """Lengths that prompts and completions are padded to."""

    prompt_buckets: tuple[int, ...]
    completion_buckets: tuple[int, ...]


class Size(NamedTuple):
    """A model and the shapes it is measured at."""

    config: InternVLConfig
    images: int
    text: int  # prompt tokens beside the images'
    completion: int
    lengths: tuple[int, int]  # of SFT's completions, from and to
    buckets: Buckets  # that SFT pads to


SIZES = {
    "bench": Size(
        InternVLConfig(
            VisionConfig(width=256, layers=6, heads=4, mlp_width=1024, image_size=224),
            TextConfig(width=512, layers=8, heads=8, kv_heads=2, mlp_width=1536, vocab_size=8192),
            image_token=3,
            remat="dots",  # fastest on two cores: products cost most, and all else that is kept must be written to new memory
        ),
        images=5,
        text=80,
        completion=96,
        lengths=(24, 160),
        buckets=Buckets((480,), tuple(range(32, 161, 32))),
    ),
    "2b": Size(
        dataclasses.replace(PRESETS["internvl3_2b"], dtype="bfloat16"),
        images=5,
        text=120,
        completion=256,
        lengths=(64, 512),
        buckets=Buckets((1536,), (128, 256, 384, 512)),
    ),
}


def random_model(config: InternVLConfig) -> tuple[nnx.GraphDef, dict]:
    """Graph and random parameters."""
    graph, _ = abstract_model(config)
    parameters = jax.jit(lambda: nnx.to_pure_dict(nnx.state(InternVL(config, rngs=nnx.Rngs(0)))))()
    return graph, parameters


def prompts(size: Size, text: list[int] | None = None) -> dict[str, Any]:
    """Random tiles and prompts, right-padded; text: tokens beside the images', of each sample, None: one of size.text."""
    rng = np.random.default_rng(0)
    config = size.config
    image = [config.image_token] * config.tokens_per_tile
    rows = []
    for count in text or [size.text]:
        words = rng.integers(4, 250, count).tolist()
        spread = [words[4 * i : 4 * i + 4] + image for i in range(size.images)]
        rows.append(list(itertools.chain(*spread)) + words[4 * size.images :])
    length = max(map(len, rows))
    side = config.vision.image_size
    return dict(
        tiles=rng.integers(0, 255, (len(rows), size.images, side, side, 3), np.uint8),
        prompt_ids=np.array([row + [0] * (length - len(row)) for row in rows], np.int32),
        prompt_mask=np.arange(length) < np.array([[len(row)] for row in rows]),
    )


def make_batch(size: Size, text: list[int] | None = None, completions: list[int] | None = None) -> Batch:
    """A batch of `prompts`, with one random completion of each length."""
    completions = completions or [0] * len(text or [0])
    mask = np.arange(max(completions)) < np.array(completions)[:, None]
    rows = len(completions)
    return Batch(
        **prompts(size, text),
        completion_ids=np.random.default_rng(1).integers(4, 250, mask.shape)[:, None].astype(np.int32),
        completion_mask=mask[:, None],
        index=np.arange(rows, dtype=np.int32),
        answer=np.zeros(rows, np.int32),
        num_options=np.full(rows, 4, np.int32),
        dimension=np.zeros(rows, np.int32),
    )


def make_experience(size: Size, group: int) -> grpo.Experience:
    """One prompt's group of full completions, on policy."""
    rng, shape = np.random.default_rng(1), (1, group, size.completion)
    return grpo.Experience(
        **prompts(size),
        completion_ids=rng.integers(4, 250, shape).astype(np.int32),
        completion_mask=np.ones(shape, bool),
        advantages=rng.standard_normal(shape[:2]).astype(np.float32),
        old_logprobs=None,
        ref_logprobs=None,
    )


def measure(run: Callable[[], Any], arguments: flags.FlagValues) -> float:
    """Median seconds of a call, after one that compiles; with --profile one more is traced."""
    times = []
    for _ in range(arguments.reps + 1):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    if arguments.profile:
        with jax.profiler.trace(arguments.profile, create_perfetto_trace=True):
            jax.block_until_ready(run())
    return statistics.median(times[1:])


def memory(compiled: Any) -> dict[str, int]:
    """Bytes of a compiled program: arguments, temporaries, and the most that it holds."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return dict(
        argument_bytes=sizes.argument_size_in_bytes,
        temp_bytes=sizes.temp_size_in_bytes,
        peak_memory_bytes=held + sizes.temp_size_in_bytes,
    )


def rates(size: Size, seconds: float, flops: float, tokens: int) -> dict[str, Any]:
    """Tokens, FLOPs and MFU of so many seconds' work."""
    peak = peak_flops(size.config.dtype)
    return dict(
        tokens_per_s=round(tokens / seconds, 1),
        model_flops=flops,
        model_flops_per_s=flops / seconds,
        peak_flops_per_s=peak,
        mfu=round(flops / seconds / peak, 4),
    )


def run_updates(update: Update, state: TrainState, parts: list, reference: Any, arguments: flags.FlagValues):
    """Median seconds of an update and the bytes of its gradient program."""
    lowered = update.gradient.lower(state.trained, state.frozen, parts[0], jnp.float32(1), reference)
    sizes = memory(lowered.compile())

    def run():
        nonlocal state
        state, metrics = update(state, parts, reference)
        return state, metrics

    return measure(run, arguments), sizes


def grpo_update(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """One update on one prompt's group, everything trained, with a reference model."""
    graph, parameters = random_model(size.config)
    group, prompt = arguments.group, size.images * size.config.tokens_per_tile + size.text
    optimizer = make_optimizer(sft_config().optimizer, 100)
    reference = jax.tree.map(jnp.copy, parameters)
    update = grpo.make_grpo_update(graph, optimizer, temperature=1.0, loss_type="grpo", beta=0.04)
    parts = [jax.device_put(make_experience(size, group))]
    seconds, sizes = run_updates(update, init_state(parameters, optimizer, (), False), parts, reference, arguments)
    forward = forward_flops(size.config, size.images, np.array([prompt]), np.full((1, group), size.completion))
    flops = 4 * (forward.vision + forward.language)  # forward and backward, and the reference's forward
    shapes = dict(prompt=prompt, completion=size.completion, group=group)
    return dict(update_s=seconds) | shapes | rates(size, seconds, flops, prompt + group * size.completion) | sizes


def rollout(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """Prefill and sampling of one prompt's group."""
    graph, parameters = random_model(size.config)
    group, prompt = arguments.group, size.images * size.config.tokens_per_tile + size.text
    never = size.config.text.vocab_size  # no token that ends a completion
    settings = dict(group=group, max_length=size.completion, end_token=never, pad_token=0, temperature=1.0)
    parameters = jax.tree.map(lambda x: x.astype(size.config.dtype), parameters)
    sample = jax.jit(functools.partial(grpo.rollout, graph=graph, **settings))
    inputs = parameters, jax.device_put(make_batch(size)), jax.random.key(0)
    sizes = memory(sample.lower(*inputs).compile())
    seconds = measure(lambda: sample(*inputs), arguments)
    tokens = group * size.completion
    forward = forward_flops(size.config, size.images, np.array([prompt]), np.full((1, group), size.completion))
    measured = rates(size, seconds, forward.vision + forward.language, tokens)
    # What decoding reads at least: the language model for every position, and the caches as far as they are filled.
    text, width = size.config.text, jnp.dtype(size.config.dtype).itemsize
    read = size.completion * sum(x.nbytes for x in jax.tree.leaves(parameters["language"]))
    read -= size.completion * parameters["language"]["embedding"].nbytes
    cached = prompt + group * size.completion / 2
    read += size.completion * cached * 2 * text.layers * text.kv_heads * text.head_dim * width
    bandwidth = copy_bandwidth()
    share = dict(bandwidth_bytes_per_s=bandwidth, bandwidth_share=round(read / bandwidth / seconds, 4))
    shapes = dict(prompt=prompt, completion=size.completion, group=group)
    return dict(rollout_s=seconds) | shapes | measured | share | sizes


def copy_bandwidth() -> float:
    """Bytes read and written per second by copying a large array."""
    x = jnp.zeros(2**27 if jax.default_backend() == "cpu" else 2**30, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / best_seconds(lambda: add(x))


def sft_lengths(size: Size, samples: int = 16) -> tuple[list[int], list[int]]:
    """Prompt tokens beside the images' and completion tokens of the samples of sft_step."""
    rng = np.random.default_rng(0)
    texts = rng.integers(size.text, 2 * size.text, samples)
    return texts.tolist(), rng.integers(*size.lengths, samples, endpoint=True).tolist()


def sft_step(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """One step on samples of mixed lengths, in parts of similar length."""
    graph, parameters = random_model(size.config)
    texts, completions = sft_lengths(size)
    batch = make_batch(size, texts, completions)
    optimizer = make_optimizer(sft_config().optimizer, 100)
    update = make_sft_update(graph, optimizer)
    parts = [trim(part, size.buckets) for part in split_rows(batch, batch.completion_mask, arguments.parts)]
    state = init_state(parameters, optimizer, (), False)
    seconds, sizes = run_updates(update, state, jax.device_put(parts), None, arguments)
    forward = batch_flops(size.config, batch.prompt_ids, batch.prompt_mask, batch.completion_mask)
    tokens = int(batch.prompt_mask.sum() + batch.completion_mask.sum())
    padded = sum(part.prompt_mask.size + part.completion_mask.size for part in parts)
    shapes = dict(samples=len(texts), tokens=tokens, completion_tokens=sum(completions), padding=1 - tokens / padded)
    return dict(step_s=seconds) | shapes | rates(size, seconds, 3 * (forward.vision + forward.language), tokens) | sizes


def jpegs(count: int = 5, side: int = 1024) -> list[bytes]:
    """Photo-like JPEGs: smooth shapes with some grain."""
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 4, (side, side, 3))
        photo = Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
        photo.save(file := io.BytesIO(), "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def images(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """Five JPEGs of 1024 px to tiles of 448, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    encoded, times = jpegs(), []
    for _ in range(5 * arguments.reps + 1):
        began = time.perf_counter()
        decoded = [decode_image(data, "image") for data in encoded]
        middle = time.perf_counter()
        for image in decoded:
            tile_image(image, 448)
        times.append((time.perf_counter() - began, time.perf_counter() - middle))
    seconds, tiling = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return dict(sample_s=seconds, tiling_s=tiling, images=len(encoded), images_per_s=round(len(encoded) / seconds, 1))


def load(size: Size, _: flags.FlagValues) -> dict[str, Any]:
    """load_pretrained of a checkpoint in the -hf layout, float32 from bfloat16."""
    _, parameters = random_model(size.config)
    half = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16)), parameters)
    kept = sum(x.nbytes for x in jax.tree.leaves(parameters))
    del parameters
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_parameters(half, size.config, f"{folder}/checkpoint")
        del half
        began = time.perf_counter()
        jax.block_until_ready(huggingface.load_parameters(f"{folder}/checkpoint", size.config))
        return dict(import_s=time.perf_counter() - began, kept_bytes=kept)


def compile_time(size: Size, arguments: flags.FlagValues) -> dict[str, Any]:
    """Lowering and compiling each step's programs, nothing run."""
    graph, shapes = abstract_model(size.config)
    optimizer = make_optimizer(sft_config().optimizer, 100)
    trained, frozen = split(shapes, ("vision",), False)
    group, one = arguments.group, jax.ShapeDtypeStruct((), jnp.float32)
    sample = functools.partial(
        grpo.rollout, graph=graph, group=group, max_length=size.completion, end_token=2, pad_token=0, temperature=1.0
    )
    experience, batch = make_experience(size, group), make_batch(size, *([x[0]] for x in sft_lengths(size)))
    loss_settings = dict(temperature=1.0, loss_type="grpo", beta=0.04)
    programs = {
        "sft": (make_sft_update(graph, optimizer).gradient, (trained, frozen, batch, one, None)),
        "update": (
            grpo.make_grpo_update(graph, optimizer, **loss_settings).gradient,
            (trained, frozen, experience, one, shapes),
        ),
        "rollout": (jax.jit(sample), (shapes, batch, jax.eval_shape(lambda: jax.random.key(0)))),
    }
    result = {}
    for name, (program, inputs) in programs.items():
        began = time.perf_counter()
        compiled = program.lower(*inputs).compile()
        result |= {
            f"{name}_compile_s": time.perf_counter() - began,
            f"{name}_temp_bytes": memory(compiled)["temp_bytes"],
        }
    return result


BENCHMARKS = {
    "grpo_update": grpo_update,
    "rollout": rollout,
    "sft_step": sft_step,
    "input": images,
    "import": load,
    "compile_time": compile_time,
}


def main(words: list[str]) -> None:
    """Runs one benchmark."""
    FLAGS(words)
    size = SIZES[FLAGS.size]
    if FLAGS.remat:
        size = size._replace(config=dataclasses.replace(size.config, remat=FLAGS.remat))
    if FLAGS.vocabulary:
        text = dataclasses.replace(size.config.text, vocab_size=FLAGS.vocabulary)
        size = size._replace(config=dataclasses.replace(size.config, text=text))
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
