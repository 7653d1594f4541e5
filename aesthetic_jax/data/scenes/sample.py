"""One synthetic sample from a seed and a number: five images, the answer, and the reasoning that leads to it."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.scenes.flaws import FLAWS, Flaw, random_flaw
from aesthetic_jax.data.scenes.products import Product, cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_reasoning
from aesthetic_jax.data.scenes.render import random_scene, render

_CANDIDATES = 4
_FAILS = 0.5  # probability that a candidate has a flaw of the dimension asked about
_DISTRACTS = 0.4  # of each other dimension


@dataclasses.dataclass(frozen=True)
class SyntheticSample:
    """Images as JPEG bytes, the original first, and what is true of them."""

    dimension: str
    images: tuple[bytes, ...]
    answer: tuple[str, ...]
    reasoning: str
    flaws: tuple[tuple[Flaw, ...], ...]  # of each candidate, asked about or not


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _flaws(rng: np.random.Generator, asked: str, product: Product, strength: tuple[float, float]) -> tuple[Flaw, ...]:
    """The flaws of one candidate, at most one of a dimension."""
    flawed = [x for x in DIMENSIONS if rng.random() < (_FAILS if x == asked else _DISTRACTS)]
    flaws = (random_flaw(rng, dimension, product, strength) for dimension in flawed)
    # Without a shadow nobody can tell whether a product floats.
    return tuple(flaw for flaw in flaws if not (asked == "placement_layout" and flaw.name == "missing"))


def make_sample(
    seed: int,
    number: int,
    size: int,
    strength: tuple[float, float],
    thorough: float = 0.0,
    cutouts: Sequence[Image.Image] = (),
    backdrops: Sequence[Image.Image] = (),
) -> SyntheticSample:
    """Sample `number` of a data set; it depends on nothing but the arguments.

    Args:
        size: side of the images in pixels.
        strength: range that the strength of flaws is drawn from.
        thorough: probability that the chain of thought tells all there is to see of each image.
        cutouts: a user's products; empty: drawn ones.
        backdrops: a user's photos; empty: a wall and a table.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]
    product = cutout_product(cutouts[rng.integers(len(cutouts))]) if cutouts else random_product(rng)

    def scene():
        return random_scene(rng, backdrops[rng.integers(len(backdrops))] if backdrops else None)

    scenes = [scene() for _ in range(1 + _CANDIDATES)]
    flaws = [(), *(_flaws(rng, dimension, product, strength) for _ in range(_CANDIDATES))]
    return SyntheticSample(
        dimension=dimension,
        images=tuple(_jpeg(render(product, *x, size)) for x in zip(scenes, flaws, strict=True)),
        answer=tuple(
            letter
            for letter, present in zip("ABCD", flaws[1:], strict=True)
            if all(flaw.name not in FLAWS[dimension] for flaw in present)
        ),
        reasoning=write_reasoning(rng, dimension, product, scenes, flaws, rng.random() < thorough),
        flaws=tuple(flaws[1:]),
    )
