"""Opens a trained model to answer a split's questions, with the prompt settings of its training."""

import sys
from typing import NamedTuple

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from aesthetic_jax.data.pipeline import Preprocessor
from aesthetic_jax.data.records import Records, open_records, refuse_descriptions
from aesthetic_jax.models.internvl import Parameters, abstract_model
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.mesh import check_rows, make_mesh
from aesthetic_jax.training.model import (
    adopt_prompt_settings,
    make_preprocessor,
    trained_model,
)


class Judge(NamedTuple):
    """A model, its mesh, and the records to answer."""

    graph: nnx.GraphDef
    parameters: Parameters
    preprocessor: Preprocessor
    mesh: Mesh
    records: Records
    path: str  # of the checkpoint


def open_judge(config: ConfigDict, checkpoint: str, split: str, batch_field: str) -> Judge:
    """Opens a checkpoint and a split of the config's data.

    Uses the run's prompt settings, and prints a line if the config's differ.

    Args:
        batch_field: config field with the number of prompts per batch.

    Raises:
        UserError: config, data, checkpoint or devices don't fit.
    """
    check_config(config)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, batch_field, config[batch_field])
    records = open_records(config.data.manifest, config.data.data_dir, split)
    refuse_descriptions(records, split, "only samples with an answer can be scored")
    difference = adopt_prompt_settings(config, checkpoint)
    if difference and jax.process_index() == 0:
        print(f"aesthetic-jax: {difference}", file=sys.stderr)
    loaded = trained_model(config, checkpoint, mesh)
    preprocessor = make_preprocessor(config, loaded.architecture, loaded.tokenizer)
    graph, _ = abstract_model(loaded.architecture)
    return Judge(graph, loaded.parameters, preprocessor, mesh, records, loaded.path)
