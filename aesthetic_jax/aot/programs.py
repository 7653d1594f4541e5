"""The programs of each step of a config, with abstract arguments of the config's largest shapes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from aesthetic_jax.data.pipeline import Batch
from aesthetic_jax.models.internvl import Parameters
from aesthetic_jax.training import grpo
from aesthetic_jax.training.mesh import check_rows, rows_sharding
from aesthetic_jax.training.model import config_architecture
from aesthetic_jax.training.setup import TrainSetup, prepare
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.update import Update


class Program(NamedTuple):
    """One jitted function of a step, and its arguments.

    Attributes:
        function: jitted; has `lower`.
        arguments: abstract arrays with shardings.
        runs: calls per step.
        resident: other abstract arrays that stay in device memory during a call.
        trips: iterations of its loops that end on a condition.
    """

    function: Any
    arguments: tuple
    runs: int
    resident: Any
    trips: int = 1


def abstract_setup(config: ConfigDict, mesh: Mesh) -> TrainSetup:
    """A config's training setup on a mesh whose devices need not be attached.

    Raises:
        UserError: the batch or the model doesn't fit the mesh.
    """
    check_rows(mesh, "batch_size", config.batch_size, config.micro_batches)
    return prepare(config, config_architecture(config), mesh)


def step_programs(setup: TrainSetup) -> dict[str, list[Program]]:
    """The programs of each step: of `sft`, or of `rollout` and `update`."""
    with jax.set_mesh(setup.mesh):
        return _sft_programs(setup) if setup.config.method == "sft" else _grpo_programs(setup)


def tiles_per_prompt(config: ConfigDict) -> int:
    """N, the tiles of a prompt: those of each image, and a thumbnail if it can have several."""
    data = config.data
    return data.max_images * (data.max_tiles + (data.max_tiles > 1))


def _sft_programs(setup: TrainSetup) -> dict[str, list[Program]]:
    batch = _batch(setup, setup.config.data.completion_buckets[-1])
    update = make_sft_update(setup.graph, setup.optimizer, setup.shardings)
    return {"sft": _update_programs(setup, update, batch, None)}


def _grpo_programs(setup: TrainSetup) -> dict[str, list[Program]]:
    config, architecture = setup.config, setup.architecture
    inference = grpo.make_inference(config, setup.graph, setup.mesh, end_token=1, pad_token=0)
    reference = setup.parameters if config.grpo.beta else None
    resident = (setup.state.optimizer, reference)
    batch, rollout = _batch(setup, 0), []
    if "vision" in config.model.freeze:
        rollout = [Program(inference.vision_features, (setup.parameters, batch.tiles), 1, resident)]
        width = architecture.vision.width * architecture.shuffle**2
        shape = (tiles_per_prompt(config), architecture.tokens_per_tile, width)
        features = _rows(setup, shape, jnp.dtype(architecture.dtype))
        batch = batch._replace(tiles=None, features=features)
    key = jax.eval_shape(lambda: jax.random.key(0))
    length = config.max_completion_length
    arguments = (setup.parameters, batch, key)
    rollout.append(Program(inference.rollout, arguments, 1, resident, trips=length))
    update = grpo.make_update_for(setup)
    experience = _experience(setup, batch)
    return {
        "rollout": rollout,
        "update": _update_programs(setup, update, experience, reference),
    }


def _update_programs(
    setup: TrainSetup, update: Update, batch: Any, reference: Parameters | None
) -> list[Program]:
    """One optimiser update on the microbatches of a batch."""
    count, state = setup.config.micro_batches, setup.state
    microbatch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (x.shape[0] // count, *x.shape[1:]), x.dtype, sharding=x.sharding
        ),
        batch,
    )
    replicated = NamedSharding(setup.mesh, PartitionSpec())
    tokens = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    inputs = (state.trained, state.frozen, microbatch, tokens, reference)
    resident = (state.optimizer, [microbatch] * (count - 1))
    if count == 1:
        gradient = Program(update.gradient, inputs, 1, resident)
    else:
        gradient = Program(update.add, (state.trained, *inputs), count, resident)
    _, metrics = jax.eval_shape(gradient.function, *gradient.arguments)
    metrics = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), metrics
    )
    arguments = (state.trained, state.optimizer, state.trained, [metrics] * count)
    resident = (state.frozen, reference, [microbatch] * count)
    return [gradient, Program(update.apply, arguments, 1, resident)]


def _batch(setup: TrainSetup, completion: int) -> Batch:
    """A batch whose prompts have the longest bucket and completions so many tokens."""
    config, side = setup.config, setup.architecture.vision.image_size
    prompt = config.data.prompt_buckets[-1]
    number = _rows(setup, (), jnp.int32)
    return Batch(
        tiles=_rows(setup, (tiles_per_prompt(config), side, side, 3), jnp.uint8),
        prompt_ids=_rows(setup, (prompt,), jnp.int32),
        prompt_mask=_rows(setup, (prompt,), bool),
        completion_ids=_rows(setup, (1, completion), jnp.int32),
        completion_mask=_rows(setup, (1, completion), bool),
        index=number,
        answer=number,
        num_options=number,
        dimension=number,
    )


def _experience(setup: TrainSetup, batch: Batch) -> grpo.Experience:
    """What an update gets from a rollout of this batch with completions of the greatest length."""
    settings = setup.config.grpo
    group, length = settings.num_generations, setup.config.max_completion_length
    logprobs = _rows(setup, (group, length), jnp.float32)
    several = settings.num_iterations > 1
    return grpo.Experience(
        tiles=batch.tiles,
        features=batch.features,
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        completion_ids=_rows(setup, (group, length), jnp.int32),
        completion_mask=_rows(setup, (group, length), bool),
        advantages=_rows(setup, (group,), jnp.float32),
        old_logprobs=logprobs if several else None,
        ref_logprobs=logprobs if several and settings.beta else None,
    )


def _rows(setup: TrainSetup, shape: tuple[int, ...], dtype: Any) -> Any:
    """An abstract array: one entry of this shape per row of the batch."""
    rows = setup.config.batch_size
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=rows_sharding(setup.mesh))
