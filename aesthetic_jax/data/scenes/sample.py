"""One synthetic sample from a seed and a number: five images, the answer and its reasoning."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from aesthetic_jax.data.answers import option_letters
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.scenes.flaws import FLAWS, Flaw, random_flaw
from aesthetic_jax.data.scenes.products import Product, cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_reasoning
from aesthetic_jax.data.scenes.render import Scene, random_scene, render

_CANDIDATES = 4
# Probability of a flaw in the dimension asked about, and in each other dimension.
_FAILS, _DISTRACTS = 0.5, 0.4


@dataclasses.dataclass(frozen=True)
class SyntheticSample:
    """A rendered sample.

    Attributes:
        dimension: the dimension asked about.
        images: JPEG files, the original first.
        answer: letters of the candidates that pass.
        reasoning: chain of thought.
        flaws: each candidate's flaws, in all dimensions.
    """

    dimension: str
    images: tuple[bytes, ...]
    answer: tuple[str, ...]
    reasoning: str
    flaws: tuple[tuple[Flaw, ...], ...]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _flaws(
    rng: np.random.Generator, asked: str, product: Product, strength: tuple[float, float]
) -> tuple[Flaw, ...]:
    """Draws the flaws of one candidate, at most one of each dimension."""
    flawed = [x for x in DIMENSIONS if rng.random() < (_FAILS if x == asked else _DISTRACTS)]
    flaws = (random_flaw(rng, dimension, product, strength) for dimension in flawed)
    # Without a shadow, one can't tell whether a product floats.
    return tuple(
        flaw for flaw in flaws if not (asked == "placement_layout" and flaw.name == "missing")
    )


def make_sample(
    seed: int,
    number: int,
    size: int,
    strength: tuple[float, float],
    thorough: float = 0.0,
    cutouts: Sequence[Image.Image] = (),
    backdrops: Sequence[Image.Image] = (),
) -> SyntheticSample:
    """Makes sample `number` of a data set; it depends only on the arguments.

    Args:
        seed: seed of the data set.
        number: number of the sample, from 0; it also decides the dimension.
        size: side of the images in pixels.
        strength: range that the strength of flaws is drawn from.
        thorough: probability that the chain of thought describes every image in all dimensions.
        cutouts: a user's products; empty: drawn ones.
        backdrops: a user's photos; empty: a wall and a table.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]

    def choose(images: Sequence[Image.Image]) -> Image.Image:
        return images[int(rng.integers(len(images)))]

    def draw_scene() -> Scene:
        return random_scene(rng, choose(backdrops) if backdrops else None)

    product = cutout_product(choose(cutouts)) if cutouts else random_product(rng)

    scenes = [draw_scene() for _ in range(1 + _CANDIDATES)]
    flaws = [(), *(_flaws(rng, dimension, product, strength) for _ in range(_CANDIDATES))]
    return SyntheticSample(
        dimension=dimension,
        images=tuple(_jpeg(render(product, *x, size)) for x in zip(scenes, flaws, strict=True)),
        answer=tuple(
            letter
            for letter, present in zip(option_letters(_CANDIDATES), flaws[1:], strict=True)
            if all(flaw.name not in FLAWS[dimension] for flaw in present)
        ),
        reasoning=write_reasoning(rng, dimension, product, scenes, flaws, rng.random() < thorough),
        flaws=tuple(flaws[1:]),
    )
