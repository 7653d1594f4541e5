"""Our inference sections: preprocessing, prompts, forward pass, decoding, losses, import, export.

Each section looks the package's functions up in their modules and compiles them anew, so that
paritylib.errors can replace them.
"""

import gc
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aesthetic_jax.checkpoints import huggingface
from aesthetic_jax.data import images as package_images
from aesthetic_jax.data import prompts as package_prompts
from aesthetic_jax.models import internvl
from aesthetic_jax.models import logprobs as package_logprobs
from aesthetic_jax.rl import advantages as package_advantages
from aesthetic_jax.rl import losses as package_losses
from aesthetic_jax.rl import rollouts
from paritylib import cases
from paritylib.ours_inputs import encode, left_padded, load_model, make_batch, open_tokenizer
from paritylib.work import Work


def images(work: Work) -> dict:
    """Tiles as bytes, and the normalised pixels of the model's own batch."""
    tiles = [
        package_images.tile_image(image, cases.TILE_SIZE, cases.MAX_TILES_PREPROCESSED)
        for image in cases.preprocessed_images()
    ]
    batch_tiles, _ = encode(work, cases.samples(work, work.amount.prompts, seed=1))
    pixels = internvl.normalize(np.concatenate(batch_tiles))
    return {"tiles": np.concatenate(tiles), "pixels": pixels}


def prompts(work: Work) -> dict:
    """Texts and ids of both published templates."""
    tokenizer = open_tokenizer(work)
    samples = cases.samples(work, work.amount.greedy_prompts, seed=2)
    arrays = {}
    for name, system in (("hf", ""), ("original", package_prompts.INTERNVL_SYSTEM_PROMPT)):
        _, texts = encode(work, samples, system)
        arrays[f"{name}_text"] = cases.text_array(texts)
        arrays[f"{name}_ids"] = np.concatenate([tokenizer.encode(text) for text in texts])
    return arrays


def forward(work: Work) -> dict:
    """Vision features, projector output and logits."""
    graph, parameters = load_model(work)
    tokenizer = open_tokenizer(work)
    tiles, texts = encode(work, cases.samples(work, work.amount.prompts, seed=1))
    ids, mask = left_padded([tokenizer.encode(text) for text in texts], tokenizer.pad)
    pixels = internvl.normalize(jnp.asarray(np.concatenate(tiles)))

    @jax.jit
    def compute_features(parameters, pixels):
        model = nnx.merge(graph, parameters)
        return model.vision(pixels), model.image_features(pixels)

    @jax.jit
    def compute_logits(parameters, ids, pixels, mask):
        return nnx.merge(graph, parameters)(ids, pixels, mask)

    vision, projected = compute_features(parameters, pixels)
    logits = np.asarray(compute_logits(parameters, ids, pixels, mask))
    logits = logits.reshape(-1, logits.shape[-1])[cases.kept_positions(mask, logits.shape[-1])]
    return {"vision": vision, "projected": projected, "logits": logits}


def logprobs(work: Work, dtype: str = "float32") -> dict:
    """Log-probability and entropy of each completion token, G completions on one prompt cache."""
    graph, parameters = load_model(work, dtype)
    group, count = work.amount.group, work.amount.prompts
    batch = make_batch(work, cases.samples(work, count, seed=1))
    ids, mask = cases.completions(count * group, open_tokenizer(work).end, seed=1)

    @jax.jit
    def compute(parameters, batch, ids):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return package_logprobs.completion_logprobs(model, prompt, ids, cases.TEMPERATURE)

    computed = compute(parameters, batch, ids.reshape(count, group, -1))
    chosen, entropies = (np.asarray(x).reshape(mask.shape)[mask] for x in computed)
    return {"logprobs": chosen, "entropies": entropies}


def bfloat16(work: Work) -> dict:
    """`logprobs` of the model in bfloat16 with its head in float32."""
    return logprobs(work, "bfloat16")


def greedy(work: Work) -> dict:
    """Token ids [prompts, tokens] sampled at temperature 0; -1 after the end token."""
    graph, parameters = load_model(work)
    tokenizer = open_tokenizer(work)
    batch = make_batch(work, cases.samples(work, work.amount.greedy_prompts, seed=2))
    sampling = rollouts.Sampling(
        group=1,
        max_length=work.amount.greedy_tokens,
        end_token=tokenizer.end,
        pad_token=tokenizer.pad,
        temperature=0.0,
    )

    @jax.jit
    def sample(parameters, batch):
        model = nnx.merge(graph, parameters)
        prompt = model.prefill(batch.tiles, batch.prompt_ids, batch.prompt_mask)
        return rollouts.sample_completions(
            model,
            prompt,
            batch.index,
            jax.random.key(0),
            sampling,
        )

    rollout = sample(parameters, batch)
    return {"ids": np.where(rollout.mask, rollout.ids, -1)[:, 0]}


def advantages(_: Work) -> dict:
    """`group_advantages` of given rewards, for each scaling."""
    rewards = jnp.asarray(cases.rewards(0))
    return {
        scale: package_advantages.group_advantages(rewards, scale_rewards=scale)
        for scale in cases.SCALES
    }


def losses(_: Work) -> dict:
    """`policy_loss` on given log-probabilities, and its gradient in them."""
    arrays = cases.loss_arrays()
    others = [arrays[key] for key in ("old_logprobs", "ref_logprobs", "advantages", "mask")]

    @jax.jit
    def compute(logprobs):
        def loss_and_gradient(settings):
            return jax.value_and_grad(
                lambda x: package_losses.policy_loss(x, *others, **settings)[0]
            )(logprobs)

        return {name: loss_and_gradient(settings) for name, settings in cases.LOSSES.items()}

    computed = {}
    for name, (loss, gradient) in compute(arrays["logprobs"]).items():
        computed |= {f"{name}/loss": loss, f"{name}/gradient": gradient}
    return computed


def export(work: Work) -> dict:
    """Writes work.folder/export; transformers reopens it and computes this section's arrays."""
    graph, parameters = load_model(work)
    shutil.rmtree(work.folder / "export", ignore_errors=True)
    source = str(work.model) if (work.model / "tokenizer.json").exists() else None
    huggingface.save_pretrained(nnx.merge(graph, parameters), str(work.folder / "export"), source)
    return {}


def load(work: Work) -> dict:
    """Seconds that an import takes, and its peak of host memory over the bytes that it keeps."""
    jax.devices()  # starts JAX, whose own memory is not the import's
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before, start = _memory("VmRSS"), time.perf_counter()
    model = huggingface.load_pretrained(str(work.model))
    jax.block_until_ready(nnx.state(model))
    seconds = time.perf_counter() - start
    kept = sum(x.nbytes for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))))
    return {"seconds": np.array(seconds), "memory": np.array((_memory("VmHWM") - before) / kept)}


def _memory(field: str) -> int:
    """Bytes of this process, by the field's name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


SECTIONS = {
    section.__name__: section
    for section in (
        images, prompts, forward, logprobs, bfloat16, greedy, advantages, losses, export, load,
    )
}  # fmt: skip
