"""Our side of parity.py: the package's own functions on the samples of parity_cases.

Functions of the package are looked up in their modules at every call and compiled anew in every section, so that
parity_errors.py can replace them.
"""

import functools
import gc
import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
from flax import nnx
from ml_collections import ConfigDict
from parity_cases import Sample, Work
from safetensors.numpy import load_file

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data import images as package_images
from aesthetic_jax.data import prompts as package_prompts
from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.data.tokenizer import ChatTokenizer, load_tokenizer
from aesthetic_jax.models import internvl
from aesthetic_jax.models import logprobs as package_logprobs
from aesthetic_jax.rl import advantages as package_advantages
from aesthetic_jax.rl import losses as package_losses
from aesthetic_jax.rl import rollouts
from aesthetic_jax.training import grpo as package_grpo
from aesthetic_jax.training import sft as package_sft
from aesthetic_jax.training import state as package_state

# --- The model and its batches ---


def load_model(work: Work, dtype: str = "float32") -> tuple[nnx.GraphDef, dict]:
    """Graph and parameters of the checkpoint; kept apart, so that no compiled program holds parameters as constants."""
    graph, state = nnx.split(huggingface.load_pretrained(str(work.model), dtype))
    return graph, nnx.to_pure_dict(state)


def encode(work: Work, samples: list[Sample], system: str = "") -> tuple[list[np.ndarray], list[str]]:
    """Tiles [N, X, X, 3] uint8 and prompt of each sample."""
    architecture = huggingface.read_config(str(work.model))
    tiles, texts = [], []
    for sample in samples:
        each = [package_images.tile_image(image, work.tile_size, work.amount.max_tiles) for image in sample.images]
        counts = [len(x) for x in each]
        texts.append(package_prompts.prompt_text(sample.question, counts, architecture.tokens_per_tile, system))
        tiles.append(np.concatenate(each))
    return tiles, texts


def left_padded(rows: list[list[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask, each [B, P]."""
    length = max(map(len, rows))
    ids = np.array([[pad] * (length - len(row)) + row for row in rows], np.int32)
    return ids, np.arange(length) >= length - np.array([[len(row)] for row in rows])


def make_batch(work: Work, tokenizer: ChatTokenizer, samples: list[Sample], completions: bool = False) -> Batch:
    """A batch as the pipeline's, but left-padded; completions with the final newline of transformers' chat template."""
    tiles, texts = encode(work, samples)
    most = max(map(len, tiles))
    tiles = np.stack([np.pad(x, ((0, most - len(x)), (0, 0), (0, 0), (0, 0))) for x in tiles])
    ids, mask = left_padded([tokenizer.encode(text) for text in texts], tokenizer.pad)
    taught = [tokenizer.encode(f"{sample.completion}<|im_end|>\n") if completions else [] for sample in samples]
    length = max(map(len, taught))
    completion_ids = np.array([row + [tokenizer.pad] * (length - len(row)) for row in taught], np.int32)
    completion_mask = np.arange(length) < np.array([[len(row)] for row in taught])
    unused = np.zeros(len(samples), np.int32)
    return Batch(tiles, ids, mask, completion_ids[:, None], completion_mask[:, None], unused, unused, unused, unused)


def _flat_tiles(batch_tiles: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(batch_tiles)


# --- Inference sections ---


def images(work: Work) -> dict:
    """Tiles as bytes, and the normalised pixels of the model's own batch."""
    tiles = [
        package_images.tile_image(image, cases.TILE_SIZE, cases.MAX_TILES_PREPROCESSED)
        for image in cases.preprocessed_images()
    ]
    batch, _ = encode(work, cases.samples(work, work.amount.prompts, seed=1))
    return {"tiles": np.concatenate(tiles), "pixels": internvl.normalize(_flat_tiles(batch))}


def prompts(work: Work) -> dict:
    """Texts and ids of both published templates."""
    tokenizer = load_tokenizer(str(work.model))
    drawn = cases.samples(work, work.amount.greedy_prompts, seed=2)
    found = {}
    for name, system in (("hf", ""), ("original", package_prompts.INTERNVL_SYSTEM_PROMPT)):
        _, texts = encode(work, drawn, system)
        found[f"{name}_text"] = cases.text_array(texts)
        found[f"{name}_ids"] = np.concatenate([tokenizer.encode(text) for text in texts])
    return found


def forward(work: Work) -> dict:
    """Vision features, projector output and logits."""
    graph, parameters = load_model(work)
    tokenizer = load_tokenizer(str(work.model))
    tiles, texts = encode(work, cases.samples(work, work.amount.prompts, seed=1))
    ids, mask = left_padded([tokenizer.encode(text) for text in texts], tokenizer.pad)
    pixels = internvl.normalize(jnp.asarray(_flat_tiles(tiles)))

    @jax.jit
    def features(parameters, pixels):
        model = nnx.merge(graph, parameters)
        return model.vision(pixels), model.image_features(pixels)

    @jax.jit
    def logits(parameters, ids, pixels, mask):
        return nnx.merge(graph, parameters)(ids, pixels, mask)

    vision, projected = features(parameters, pixels)
    found = np.asarray(logits(parameters, ids, pixels, mask))
    found = found.reshape(-1, found.shape[-1])[cases.kept_positions(mask, found.shape[-1])]
    return {"vision": vision, "projected": projected, "logits": found}


def logprobs(work: Work, dtype: str = "float32") -> dict:
    """Log-probability and entropy of every completion token, G completions on one prompt's cache."""
    graph, parameters = load_model(work, dtype)
    tokenizer = load_tokenizer(str(work.model))

    group, prompts = work.amount.group, work.amount.prompts
    batch = make_batch(work, tokenizer, cases.samples(work, prompts, seed=1))
    ids, mask = cases.completions(prompts * group, tokenizer.end, seed=1)

    @jax.jit
    def compute(parameters, batch, ids):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, ids, cases.TEMPERATURE)

    computed = compute(parameters, batch, ids.reshape(prompts, group, -1))
    chosen, entropies = (np.asarray(x).reshape(mask.shape)[mask] for x in computed)
    return {"logprobs": chosen, "entropies": entropies}


def bfloat16(work: Work) -> dict:
    """`logprobs` of the model in bfloat16, its head in float32."""
    return logprobs(work, "bfloat16")


def greedy(work: Work) -> dict:
    """Tokens that `sample_completions` picks at temperature 0; -1 behind the end token."""
    graph, parameters = load_model(work)
    tokenizer = load_tokenizer(str(work.model))
    batch = make_batch(work, tokenizer, cases.samples(work, work.amount.greedy_prompts, seed=2))
    settings = dict(group=1, max_length=work.amount.greedy_tokens, end_token=tokenizer.end, pad_token=tokenizer.pad)

    @jax.jit
    def sample(parameters, batch):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return rollouts.sample_completions(model, prompt, batch.index, jax.random.key(0), temperature=0.0, **settings)

    rollout = sample(parameters, batch)
    return {"ids": np.where(rollout.mask, rollout.ids, -1)[:, 0]}


def advantages(_: Work) -> dict:
    """`group_advantages` of given rewards, for each scaling."""
    return {
        scale: package_advantages.group_advantages(jnp.asarray(cases.rewards(0)), scale_rewards=scale)
        for scale in cases.SCALES
    }


def losses(_: Work) -> dict:
    """`policy_loss` on given log-probabilities, and its gradient in them."""
    arrays = cases.loss_arrays()
    others = [arrays[key] for key in ("old_logprobs", "ref_logprobs", "advantages", "mask")]

    @jax.jit
    def compute(logprobs):
        def both(settings):
            return jax.value_and_grad(lambda x: package_losses.policy_loss(x, *others, **settings)[0])(logprobs)

        return {name: both(settings) for name, settings in cases.LOSSES.items()}

    found = {}
    for name, (loss, gradient) in compute(arrays["logprobs"]).items():
        found |= {f"{name}/loss": loss, f"{name}/gradient": gradient}
    return found


def export(work: Work) -> dict:
    """Writes work.folder/export, for transformers to open; what it computes there is our side of this section."""
    graph, parameters = load_model(work)
    shutil.rmtree(work.folder / "export", ignore_errors=True)
    source = str(work.model) if (work.model / "tokenizer.json").exists() else None
    huggingface.save_pretrained(nnx.merge(graph, parameters), str(work.folder / "export"), source)
    return {}


def load(work: Work) -> dict:
    """Seconds that an import takes, and the host memory at its peak over the bytes that it keeps."""
    jax.devices()  # what JAX itself takes is not the import's
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before, began = _memory("VmRSS"), time.perf_counter()
    model = huggingface.load_pretrained(str(work.model))
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - began
    kept = sum(x.nbytes for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))))
    return {"seconds": np.array(seconds), "memory": np.array((_memory("VmHWM") - before) / kept)}


def _memory(field: str) -> int:
    """Bytes of this process, by the field's name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


# --- Training sections ---


def _named(prefix: str, parameters: dict, work: Work) -> dict[str, np.ndarray]:
    """Parameters, or gradients, by the names and in the shapes of the checkpoint's tensors."""
    config = huggingface.read_config(str(work.model))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_parameters(parameters, config, f"{folder}/tensors")
        return {f"{prefix}/{name}": x for name, x in load_file(f"{folder}/tensors/model.safetensors").items()}


def sft(work: Work) -> dict:
    """`sft_loss` of one batch, its gradient in the log-probabilities and in every parameter."""
    graph, parameters = load_model(work)
    tokenizer = load_tokenizer(str(work.model))
    batch = make_batch(work, tokenizer, cases.samples(work, cases.SFT_SAMPLES, seed=3)[: cases.SFT_BATCH], True)

    def logprobs(parameters):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, batch.completion_ids)[0]

    def loss(logprobs):
        return package_sft.sft_loss(logprobs, batch.completion_mask)

    value, gradients = jax.jit(jax.value_and_grad(lambda parameters: loss(logprobs(parameters))))(parameters)
    gradient = np.asarray(jax.grad(loss)(jnp.zeros(batch.completion_mask.shape)))
    return {
        "loss": value,
        "tokens": np.array([np.count_nonzero(gradient)]),
        "gradient": gradient[batch.completion_mask],
        **_named("gradients", gradients, work),
    }


def _cut(batch: Batch, size: int) -> list[Batch]:
    """Batches of `size` prompts, of one shape, so that one program serves them all."""
    starts = range(0, len(batch.index), size)
    return [jax.tree.map(lambda x, start=start: x[start : start + size], batch) for start in starts]


def _optimizer(learning_rate: float):
    settings = cases.OPTIMIZER | dict(
        learning_rate=learning_rate, vision_factor=1.0, schedule="linear", warmup_updates=0, end_factor=0.0
    )
    return package_state.make_optimizer(ConfigDict(settings), cases.STEPS)


def _run_arrays(work: Work, state, metrics: list[dict]) -> dict:
    return {
        "losses": np.array([float(each["loss"]) for each in metrics]),
        "grad_norms": np.array([float(each["grad_norm"]) for each in metrics]),
        **_named("weights", state.parameters, work),
    }


def sft_run(work: Work) -> dict:
    """20 SFT steps over the samples in order."""
    graph, parameters = load_model(work)
    tokenizer = load_tokenizer(str(work.model))
    samples = cases.samples(work, cases.SFT_SAMPLES, seed=3)
    batches = _cut(make_batch(work, tokenizer, samples, completions=True), cases.SFT_BATCH)
    optimizer = _optimizer(cases.OPTIMIZER["learning_rate"])
    state = package_state.init_state(parameters, optimizer, freeze=(), lora=False)
    update = package_sft.make_sft_update(graph, optimizer)
    metrics = []
    for number in range(cases.STEPS):
        batch = batches[number % len(batches)]
        parts = package_state.split_rows(batch, batch.completion_mask, cases.MICRO_BATCHES)
        state, measured = update(state, parts)
        metrics.append(measured)
    return _run_arrays(work, state, metrics)


def _experience(batch: Batch, number: int, end: int) -> package_grpo.Experience:
    """Rollout `number`, its completions and rewards given; log-probabilities are still to come."""
    ids, mask = cases.completions(cases.GRPO_BATCH * cases.GROUP, end, seed=100 + number)
    shape = (cases.GRPO_BATCH, cases.GROUP, -1)
    given = package_advantages.group_advantages(jnp.asarray(cases.rewards(number)))
    return package_grpo.Experience(
        tiles=batch.tiles,
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=ids.reshape(shape),
        completion_mask=mask.reshape(shape),
        advantages=given,
        old_logprobs=None,
        ref_logprobs=None,
    )


def _grpo_batches(work: Work) -> tuple[list[Batch], int]:
    tokenizer = load_tokenizer(str(work.model))
    batch = make_batch(work, tokenizer, cases.samples(work, cases.GRPO_SAMPLES, seed=4))
    return _cut(batch, cases.GRPO_BATCH), tokenizer.end


def grpo(work: Work) -> dict:
    """`policy_loss` of the whole model, off policy, with a reference; and every parameter's gradient."""
    graph, parameters = load_model(work)
    batches, end = _grpo_batches(work)
    batch, experience = batches[0], _experience(batches[0], 0, end)
    ids, mask = experience.completion_ids, experience.completion_mask

    def logprobs(parameters):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, ids, cases.TEMPERATURE)[0]

    def loss(logprobs, ref, old):
        settings = dict(loss_type=cases.LOSS_TYPE, beta=cases.BETA)
        return package_losses.policy_loss(logprobs, old, ref, experience.advantages, mask, **settings)[0]

    shift = np.random.default_rng(5).normal(size=(2, mask.shape[0] * mask.shape[1], mask.shape[2]))
    shift = shift.astype(np.float32).reshape(2, *mask.shape)
    start = jax.jit(logprobs)(parameters)
    others = start + 0.2 * shift[0], start + 0.3 * shift[1]
    whole = jax.jit(jax.value_and_grad(lambda parameters, *others: loss(logprobs(parameters), *others)))
    value, gradients = whole(parameters, *others)
    gradient = np.asarray(jax.grad(loss)(start, *others))[mask]
    return {"loss": value, "gradient": gradient, **_named("gradients", gradients, work)}


def grpo_run(work: Work) -> dict:
    """20 GRPO updates, two on every rollout."""
    graph, parameters = load_model(work)
    batches, end = _grpo_batches(work)
    optimizer = _optimizer(cases.GRPO_LEARNING_RATE)
    # The updates take the memory of what they start from, which is the reference too.
    state = package_state.init_state(jax.tree.map(jnp.copy, parameters), optimizer, freeze=(), lora=False)
    settings = dict(graph=graph, temperature=cases.TEMPERATURE)
    logprobs = jax.jit(functools.partial(package_grpo.logprobs, **settings))
    settings |= dict(optimizer=optimizer, loss_type=cases.LOSS_TYPE, beta=cases.BETA)
    update = package_grpo.make_grpo_update(**settings)
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
    return _run_arrays(work, state, metrics)


SECTIONS = {
    section.__name__: section
    for section in (
        images, prompts, forward, logprobs, bfloat16, greedy, advantages, losses, export, load,
        sft, grpo, sft_run, grpo_run,
    )
}  # fmt: skip
