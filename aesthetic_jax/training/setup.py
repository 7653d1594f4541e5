"""From a config to a run: its model, optimiser and state on the mesh, fresh or restored."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from aesthetic_jax.checkpoints import runs
from aesthetic_jax.data.tokenizer import (
    ChatTokenizer,
    copy_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.models.internvl import Parameters, abstract_model
from aesthetic_jax.training.model import initial_model, tokenizer_directory
from aesthetic_jax.training.optimizer import make_optimizer
from aesthetic_jax.training.provenance import check_same_config, write_config
from aesthetic_jax.training.state import TrainState, init_state, split, split_settings


class TrainSetup(NamedTuple):
    """A config, its abstract model, and the shardings of its state."""

    config: ConfigDict
    architecture: InternVLConfig
    mesh: Mesh
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    parameters: Parameters  # abstract, with shardings
    state: TrainState  # abstract, with shardings

    @property
    def shardings(self) -> TrainState:
        """Shardings of the state."""
        return jax.tree.map(lambda x: x.sharding, self.state)


class RunStart(NamedTuple):
    """Where a run starts: from initial parameters, or from a checkpoint of its own."""

    setup: TrainSetup
    tokenizer: ChatTokenizer
    parameters: Parameters | None  # the initial ones; None where the run resumes
    resumed: int | None  # step of the checkpoint to restore; None where the run is fresh

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.resumed or 0


def prepare(config: ConfigDict, architecture: InternVLConfig, mesh: Mesh) -> TrainSetup:
    """The setup of a config with a model of this architecture.

    The optimiser's moments are sharded as their parameters; its counters are replicated.

    Raises:
        UserError: the model doesn't fit the mesh, or no parameter is trained.
    """
    graph, parameters = abstract_model(architecture, mesh)
    updates_per_step = config.grpo.num_iterations if config.method == "grpo" else 1
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    split_by = split_settings(config.model)
    state = jax.eval_shape(lambda x: init_state(x, optimizer, **split_by), parameters)
    trained, frozen = split(jax.tree.map(lambda x: x.sharding, parameters), **split_by)
    replicated = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.optimizer,
        trained,
        transform_non_params=lambda _: replicated,
    )
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        TrainState(trained, frozen, moments),
    )
    return TrainSetup(config, architecture, mesh, graph, optimizer, parameters, state)


def start_run(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    tokenizer_texts: Callable[[], Iterable[str]],
    allow_config_change: bool,
) -> RunStart:
    """Finds a run's newest whole checkpoint, or loads its initial model and writes its directory.

    Args:
        tokenizer_texts: gives the texts that a model from scratch trains its tokenizer on.

    Raises:
        UserError: the directory holds another config's run, or `init_from` can't be loaded.
    """
    resumed = runs.newest_step(workdir)
    if runs.saved_steps(workdir):
        check_same_config(config, workdir, resumed or 0, allow_config_change)
        if jax.process_index() == 0:
            runs.set_aside_newer(workdir, resumed)
    if resumed is not None:
        setup = prepare(config, runs.read_architecture(workdir), mesh)
        return RunStart(setup, load_tokenizer(f"{workdir}/tokenizer"), None, resumed)
    model = initial_model(config, tokenizer_texts, mesh)
    if jax.process_index() == 0:
        epath.Path(workdir).mkdir(parents=True, exist_ok=True)
        write_config(config, workdir)
        runs.write_architecture(workdir, model.architecture)
        if config.init_from:
            copy_tokenizer(tokenizer_directory(config.init_from), f"{workdir}/tokenizer")
        else:
            save_tokenizer(model.tokenizer, f"{workdir}/tokenizer")
    setup = prepare(config, model.architecture, mesh)
    return RunStart(setup, model.tokenizer, model.parameters, None)


def reference_parameters(start: RunStart) -> Parameters | None:
    """The reference model: what training started from; None where the loss has no KL term."""
    config = start.setup.config
    if config.method != "grpo" or not config.grpo.beta:
        return None
    if start.parameters is not None:
        return start.parameters
    return initial_model(config, lambda: (), start.setup.mesh).parameters


def fresh_state(setup: TrainSetup, parameters: Parameters) -> TrainState:
    """The state before the first step; copies the parameters, which may serve as reference."""
    split_by = split_settings(setup.config.model)
    make = jax.jit(
        lambda x: init_state(x, setup.optimizer, **split_by), out_shardings=setup.shardings
    )
    return make(jax.tree.map(jnp.copy, parameters))


def restored_state(
    setup: TrainSetup, manager: ocp.CheckpointManager, step: int, progress: Any
) -> tuple[TrainState, Any]:
    """State and progress of a checkpoint.

    Args:
        progress: arrays of the shapes that the checkpoint's progress must have.
    """
    abstract = setup.parameters, setup.state.optimizer
    parameters, optimizer_state, progress = runs.restore(manager, step, *abstract, progress)
    trained, frozen = split(parameters, **split_settings(setup.config.model))
    return TrainState(trained, frozen, optimizer_state), progress
