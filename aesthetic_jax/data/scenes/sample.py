"""One synthetic sample from a seed and a number: five images, the answer, and the reasoning that leads to it."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.prompts import CRITERIA
from aesthetic_jax.data.scenes.flaws import Flaw, random_flaw
from aesthetic_jax.data.scenes.products import Product, cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_description, write_reasoning
from aesthetic_jax.data.scenes.render import random_scene, render

_CANDIDATES = 4
_DISTRACTED = 0.25  # share of candidates with a flaw of a dimension that is not asked about
_DISTRACTED_DESCRIBED = 0.75  # where every image is described: the more there is to see, the more is learnt


@dataclasses.dataclass(frozen=True)
class SyntheticSample:
    """Images as JPEG bytes, the original first, and what is true of them."""

    dimension: str
    images: tuple[bytes, ...]
    answer: tuple[str, ...]
    question: str | None  # None: the usual question of the dimension
    reasoning: str
    flaws: tuple[tuple[Flaw, ...], ...]  # of each candidate, asked about or not


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _distraction(rng: np.random.Generator, asked: str, product: Product, strength: tuple[float, float]) -> Flaw | None:
    other = str(rng.choice([name for name in DIMENSIONS if name != asked]))
    flaw = random_flaw(rng, other, product, strength)
    # Without a shadow nobody can tell whether a product floats.
    return None if asked == "placement_layout" and flaw.name == "missing" else flaw


def make_sample(
    seed: int,
    number: int,
    size: int,
    strength: tuple[float, float],
    describe: float = 0.0,
    cutouts: Sequence[Image.Image] = (),
    backdrops: Sequence[Image.Image] = (),
) -> SyntheticSample:
    """Sample `number` of a data set; it depends on nothing but the arguments.

    Args:
        size: side of the images in pixels.
        strength: range that the strength of flaws is drawn from.
        describe: probability that the question asks to describe every image first, and the chain of thought does.
        cutouts: a user's products; empty: drawn ones.
        backdrops: a user's photos; empty: a wall and a table.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]
    product = cutout_product(cutouts[rng.integers(len(cutouts))]) if cutouts else random_product(rng)

    def scene():
        return random_scene(rng, backdrops[rng.integers(len(backdrops))] if backdrops else None)

    described = rng.random() < describe
    distracted = _DISTRACTED_DESCRIBED if described else _DISTRACTED
    scenes, asked_flaws, all_flaws = [scene()], [], [()]
    for _ in range(_CANDIDATES):
        flaw = random_flaw(rng, dimension, product, strength) if rng.random() < 0.5 else None
        distraction = _distraction(rng, dimension, product, strength) if rng.random() < distracted else None
        scenes.append(scene())
        asked_flaws.append(flaw)
        all_flaws.append(tuple(x for x in (flaw, distraction) if x is not None))
    question = None
    reasoning = write_reasoning(rng, dimension, product, scenes[1:], asked_flaws)
    if described:
        question = f"Describe the original and A to D, then name those that {CRITERIA[dimension]}."
        reasoning = write_description(rng, product, scenes, all_flaws)
    return SyntheticSample(
        dimension=dimension,
        images=tuple(_jpeg(render(product, *x, size)) for x in zip(scenes, all_flaws, strict=True)),
        answer=tuple(letter for letter, flaw in zip("ABCD", asked_flaws, strict=True) if flaw is None),
        question=question,
        reasoning=reasoning,
        flaws=tuple(all_flaws[1:]),
    )
