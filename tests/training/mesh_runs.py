"""The same training on several meshes, as arrays; test_mesh.py runs it on eight CPU devices.

usage: mesh_runs.py OUT.npz DATAxFSDPxTENSOR/REMAT...
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from aesthetic_jax.aot.collectives import collectives, gathered_stacks, stack_gathers
from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models import logprobs
from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig
from aesthetic_jax.models.internvl import InternVL
from aesthetic_jax.training import grpo
from aesthetic_jax.training.config import grpo_config
from aesthetic_jax.training.mesh import make_mesh, put_rows, row_shards, select_rows, take_local
from aesthetic_jax.training.setup import prepare
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import init_state
from aesthetic_jax.training.update import microbatch_rows

CONFIG = InternVLConfig(
    VisionConfig(width=16, layers=2, heads=4, mlp_width=32, image_size=28, patch_size=14),
    TextConfig(width=32, layers=5, heads=8, kv_heads=4, mlp_width=48, vocab_size=64),
    image_token=3,
    remat="none",
)
ROWS, GROUP, LENGTH, MICROBATCHES, STEPS = 16, 2, 6, 2, 10


def settings():
    config = grpo_config()
    config.num_steps, config.max_completion_length, config.micro_batches = 10, LENGTH, MICROBATCHES
    config.optimizer.learning_rate, config.optimizer.epsilon, config.optimizer.weight_decay = (
        1e-2,
        1e-4,
        0.05,
    )
    config.grpo.num_generations, config.grpo.beta, config.grpo.num_iterations = GROUP, 0.1, 2
    config.model.freeze = ()
    return config


def batch():
    rng = np.random.default_rng(0)
    length = rng.integers(2, LENGTH + 1, (ROWS, 1, 1))
    text = rng.integers(4, 64, (ROWS, 7))
    return Batch(
        tiles=rng.integers(0, 255, (ROWS, 1, 28, 28, 3), np.uint8),
        prompt_ids=np.concatenate([np.full((ROWS, 1), 3), text], axis=1).astype(np.int32),
        prompt_mask=np.arange(8) < rng.integers(4, 9, (ROWS, 1)),
        completion_ids=rng.integers(4, 64, (ROWS, 1, LENGTH)).astype(np.int32),
        completion_mask=np.arange(LENGTH) < length,
        index=np.arange(100, 100 + ROWS, dtype=np.int32),
        answer=np.zeros(ROWS, np.int32),
        num_options=np.full(ROWS, 4, np.int32),
        dimension=np.zeros(ROWS, np.int32),
    )


def measure(shape, remat):
    """Losses, gradients, sampled tokens and all-gathers on one mesh."""
    architecture = dataclasses.replace(CONFIG, remat=remat)
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    mesh, config = make_mesh(sizes, jax.devices()[: int(np.prod(shape))]), settings()
    setup = prepare(config, architecture, mesh)
    graph, optimizer, shardings = setup.graph, setup.optimizer, setup.shardings
    parameter_shardings = jax.tree.map(lambda x: x.sharding, setup.parameters)
    result = {}
    with jax.set_mesh(mesh):
        make = jax.jit(
            lambda: nnx.to_pure_dict(nnx.state(InternVL(architecture, rngs=nnx.Rngs(0)))),
            out_shardings=parameter_shardings,
        )
        parameters = make()
        fresh = jax.jit(lambda x: init_state(x, optimizer, (), False), out_shardings=shardings)
        whole = batch()
        lengths = whole.completion_mask.any(1).sum(1)
        order = microbatch_rows(lengths, MICROBATCHES, row_shards(mesh))
        microbatches = [
            put_rows(mesh, jax.tree.map(lambda x, rows=rows: x[rows], whole)) for rows in order
        ]

        update = make_sft_update(graph, optimizer, shardings)
        state, result["sft/loss"] = fresh(jax.tree.map(jnp.copy, parameters)), []
        for _ in range(STEPS):
            state, metrics = update(state, microbatches)
            result["sft/loss"].append(float(metrics["loss"]))
        everything = put_rows(mesh, whole)
        tokens = jnp.float32(whole.completion_mask.sum())
        gradients, _ = update.gradient(parameters, {}, everything, tokens, None)
        for path, x in traverse_util.flatten_dict(gradients).items():
            result["gradient/" + ".".join(path)] = np.asarray(x)

        inference = grpo.make_inference(config, graph, mesh, end_token=1, pad_token=0)
        rollout = inference.rollout(
            parameters,
            everything._replace(completion_ids=None, completion_mask=None),
            jax.random.key(5),
        )
        result["rollout/ids"] = take_local(rollout.ids)
        result["rollout/logprobs"] = take_local(rollout.logprobs)
        mask = take_local(rollout.mask)
        reference = jax.tree.map(jnp.copy, parameters)
        advantages = np.tile(np.array([[1.0, -1.0]], np.float32), (ROWS, 1))
        experience = grpo.Experience(
            tiles=everything.tiles,
            prompt_ids=everything.prompt_ids,
            prompt_mask=everything.prompt_mask,
            completion_ids=rollout.ids,
            completion_mask=rollout.mask,
            advantages=put_rows(mesh, advantages),
            old_logprobs=rollout.logprobs,
            ref_logprobs=inference.logprobs(reference, everything, rollout.ids),
        )
        update = grpo.make_update_for(setup)
        longest = mask.any(1).sum(1)
        order = microbatch_rows(longest, MICROBATCHES, row_shards(mesh))
        microbatches = [select_rows(mesh, experience, rows) for rows in order]
        result["rows"] = np.sort(
            np.concatenate([take_local(part.prompt_ids) for part in microbatches]), axis=0
        )
        state = fresh(jax.tree.map(jnp.copy, parameters))
        for name in ("loss", "kl", "ratio/mean"):
            result[f"grpo/{name}"] = []
        for _ in range(STEPS):
            state, metrics = update(state, microbatches)
            for name in ("loss", "kl", "ratio/mean"):
                result[f"grpo/{name}"].append(float(metrics[name]))
        for before, after in zip(jax.tree.leaves(shardings), jax.tree.leaves(state), strict=True):
            assert before.is_equivalent_to(after.sharding, after.ndim), (before, after.sharding)

        if mesh.size > 1:
            shown = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), everything
            )
            one = jax.ShapeDtypeStruct((), jnp.float32)
            text = update_text(
                make_sft_update(graph, optimizer, shardings), setup.parameters, shown, one
            )
            found = collectives(text, mesh.size)
            stacks = gathered_stacks(setup.parameters)
            vocabulary = architecture.text.vocab_size // mesh.shape["tensor"]
            result["sums/head"] = [
                each.count
                for each in found
                if each.kind in ("all-reduce", "reduce-scatter")
                and each.in_loop
                and any(vocabulary in shape for shape in each.shapes)
            ]
            result["gathers/stacks"] = len(stack_gathers(found, stacks))
            layer = {tuple(sorted(shape[1:])) for shape in stacks}
            result["gathers/layers"] = sum(
                each.count
                for each in found
                if each.kind == "all-gather"
                and each.in_loop
                and tuple(sorted(x for x in each.shapes[0] if x > 1)) in layer
            )
    return result


def update_text(update, parameters, rows, one):
    return update.gradient.lower(parameters, {}, rows, one, None).compile().as_text()


def main(out, splits):
    assert jax.device_count() == 8
    logprobs._CHUNK_TOKENS = 4  # several chunks on every mesh
    arrays = {}
    for split in splits:
        print(split, flush=True)
        shape, remat = split.split("/")
        for name, value in measure(tuple(map(int, shape.split("x"))), remat).items():
            arrays[f"{split}/{name}"] = np.asarray(value)
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
