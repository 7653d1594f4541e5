"""What all programs of a run are made from: model, optimiser and state, built without computing anything."""

from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from aesthetic_jax.checkpoints.training import abstract_model
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.training.mesh import parameter_tree_shardings
from aesthetic_jax.training.state import Parameters, TrainState, init_state, make_optimizer, split, trained_parts


class Run(NamedTuple):
    """A config, its model, and where on the mesh everything lives."""

    config: ConfigDict
    architecture: InternVLConfig
    mesh: Mesh
    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    parameters: Parameters  # abstract, with shardings
    state: TrainState  # the same

    @property
    def shardings(self) -> TrainState:
        """Where the state lives."""
        return jax.tree.map(lambda x: x.sharding, self.state)


def prepare(config: ConfigDict, architecture: InternVLConfig, mesh: Mesh) -> Run:
    """The run that a config means with a model of this architecture.

    The optimiser's moments live where the parameters do that they belong to, its counters everywhere.

    Raises:
        UserError: the model doesn't fit the mesh, or nothing of it is trained.
    """
    graph, shapes = abstract_model(architecture)
    updates_per_step = config.grpo.num_iterations if config.method == "grpo" else 1
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    parts = trained_parts(config.model)
    state = jax.eval_shape(lambda x: init_state(x, optimizer, **parts), shapes)
    of_parameters = parameter_tree_shardings(architecture, mesh)
    trained, frozen = split(of_parameters, **parts)
    everywhere = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, state.optimizer, trained, transform_non_params=lambda _: everywhere
    )
    placed = _with_shardings(state, TrainState(trained, frozen, moments))
    return Run(config, architecture, mesh, graph, optimizer, _with_shardings(shapes, of_parameters), placed)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
