r"""Judges the candidates of one original image; prints a JSON line for each dimension.

Example:
  aesthetic-jax screen --checkpoint=runs/hcm_grpo --original=o.jpg \
    --candidates=a.jpg,b.jpg,c.jpg,d.jpg

A line holds the dimension, the completion and the predicted letters. Prompt settings are those of
the checkpoint's training.
"""

import json

from absl import flags

from aesthetic_jax.command_line import require
from aesthetic_jax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "checkpoint", None, "run directory, or one of its checkpoints", flag_values=FLAGS
)
flags.DEFINE_string("original", None, "the original product photo", flag_values=FLAGS)
flags.DEFINE_list(
    "candidates", None, "2 to 8 generated images, separated by commas", flag_values=FLAGS
)
flags.DEFINE_string("dimension", None, "one dimension; all four when left out", flag_values=FLAGS)
flags.DEFINE_string(
    "question", None, "ask this instead of the dimension's question", flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_completion_length",
    512,
    "tokens of an answer at most",
    lower_bound=2,
    flag_values=FLAGS,
)

_PROMPT_BUCKETS = tuple(2**n for n in range(7, 16))  # prompt lengths to pad to


def main(arguments: flags.FlagValues) -> None:
    """Prints a line for each dimension."""
    names = ("checkpoint", "original", "candidates")
    checkpoint, original, candidates = (require(arguments, name) for name in names)

    import jax

    from aesthetic_jax.data.manifest import DIMENSIONS
    from aesthetic_jax.data.records import Record
    from aesthetic_jax.models.internvl import abstract_model
    from aesthetic_jax.training.config import base_config
    from aesthetic_jax.training.evaluation import predict
    from aesthetic_jax.training.mesh import make_mesh
    from aesthetic_jax.training.model import (
        adopt_prompt_settings,
        make_preprocessor,
        trained_model,
    )
    from aesthetic_jax.training.sampling import make_sampler

    if arguments.dimension and arguments.dimension not in DIMENSIONS:
        raise UserError(
            f"--dimension: no '{arguments.dimension}'; choose from {', '.join(DIMENSIONS)}"
        )
    images = _read_images(original, candidates)
    config = base_config()
    adopt_prompt_settings(config, checkpoint)
    config.data.max_images = len(images)
    config.data.prompt_buckets = _PROMPT_BUCKETS
    config.max_completion_length = arguments.max_completion_length
    mesh = make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    model = trained_model(config, checkpoint, mesh)
    dimensions = [arguments.dimension] if arguments.dimension else DIMENSIONS
    records = [
        Record(x, x, images, frozenset(), len(candidates), None, arguments.question)
        for x in dimensions
    ]
    graph, _ = abstract_model(model.architecture)
    preprocessor = make_preprocessor(config, model.architecture, model.tokenizer)
    sampler = make_sampler(config, graph, preprocessor, mesh, batch_size=1)
    for row in predict(sampler, model.parameters, records, dimensions):
        print(json.dumps({name: row[name] for name in ("dimension", "completion", "predicted")}))


def _read_images(original: str, candidates: list[str]) -> tuple[bytes, ...]:
    """The encoded images, the original first."""
    from etils import epath

    from aesthetic_jax.data.images import decode_image

    if not 2 <= len(candidates) <= 8:
        raise UserError(
            f"--candidates: names {len(candidates)} images; give 2 to 8, separated by commas"
        )
    if not all(name.strip() for name in candidates):
        raise UserError(
            "--candidates: a name is empty; give 2 to 8 images, separated by single commas"
        )
    paths = [epath.Path(name) for name in (original, *candidates)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: there is no such image; correct the path")
    images = tuple(path.read_bytes() for path in paths)
    for path, image in zip(paths, images, strict=True):
        decode_image(image, str(path))  # an error names the file
    return images
