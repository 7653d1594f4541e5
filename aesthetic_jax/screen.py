"""Judges the candidates of one original image and prints the model's reasoning and answer, a JSON object a dimension.

aesthetic-jax screen --checkpoint=DIR --original=IMG --candidates=A,B,C,D [--dimension=NAME]
"""

import dataclasses
import json

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS)
flags.DEFINE_string("original", None, "the original product photo", flag_values=FLAGS)
flags.DEFINE_list("candidates", None, "2 to 8 generated images, separated by commas", flag_values=FLAGS)
flags.DEFINE_string("dimension", None, "one dimension; all four when left out", flag_values=FLAGS)
flags.DEFINE_string("question", None, "ask this in place of the dimension's question", flag_values=FLAGS)
flags.DEFINE_integer("max_tiles", 1, "tiles of an image, as in training", flag_values=FLAGS)
flags.DEFINE_integer("max_completion_length", 512, "tokens", flag_values=FLAGS)


def main(arguments: flags.FlagValues) -> None:
    """Runs the command."""
    checkpoint, original, candidates = (require(arguments, name) for name in ("checkpoint", "original", "candidates"))

    import jax
    from etils import epath

    from aesthetic_jax.checkpoints.training import abstract_model, load_model
    from aesthetic_jax.data.manifest import DIMENSIONS
    from aesthetic_jax.data.pipeline import Encoder
    from aesthetic_jax.data.records import Record
    from aesthetic_jax.data.tokenizer import load_tokenizer
    from aesthetic_jax.training.evaluation import make_sampler, predict
    from aesthetic_jax.training.mesh import make_mesh

    if arguments.dimension and arguments.dimension not in DIMENSIONS:
        raise UserError(f"--dimension: no '{arguments.dimension}'; choose from {', '.join(DIMENSIONS)}")
    if not 2 <= len(candidates) <= 8:
        raise UserError(f"--candidates: names {len(candidates)} images; give 2 to 8, separated by commas")
    paths = [epath.Path(path) for path in (original, *candidates)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: there is no such image")

    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    architecture, parameters, tokenizer, _ = load_model(checkpoint, mesh)
    architecture = dataclasses.replace(architecture, attention="auto")  # of this machine, not the run's
    dimensions = [arguments.dimension] if arguments.dimension else DIMENSIONS
    images = tuple(path.read_bytes() for path in paths)
    names = ", ".join(map(str, paths))
    records = [
        Record(names, dimension, images, frozenset(), len(candidates), None, arguments.question)
        for dimension in dimensions
    ]
    encoder = Encoder(
        tokenizer=load_tokenizer(tokenizer),
        tile_size=architecture.vision.image_size,
        tokens_per_tile=architecture.tokens_per_tile,
        max_images=len(images),
        max_tiles=arguments.max_tiles,
        prompt_buckets=tuple(2**n for n in range(7, 16)),
        completion_buckets=(1,),
    )
    graph, _ = abstract_model(architecture)
    greedy = make_sampler(graph, encoder, arguments.max_completion_length, mesh)
    for row in predict(greedy, parameters, records, encoder, 1, mesh):
        print(json.dumps({name: row[name] for name in ("dimension", "completion", "predicted")}))
