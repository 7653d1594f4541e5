"""One synthetic sample from a seed and a number: five images, the answer, and the reasoning that leads to it."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.scenes.flaws import Flaw, random_flaw
from aesthetic_jax.data.scenes.products import Product, cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_reasoning
from aesthetic_jax.data.scenes.render import random_scene, render

_CANDIDATES = 4
_DISTRACTED = 0.25  # share of candidates with a flaw of a dimension that is not asked about


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


def _distraction(rng: np.random.Generator, asked: str, product: Product, strength: tuple[float, float]) -> Flaw | None:
    if rng.random() >= _DISTRACTED:
        return None
    other = str(rng.choice([name for name in DIMENSIONS if name != asked]))
    flaw = random_flaw(rng, other, product, strength)
    # Without a shadow nobody can tell whether a product floats.
    return None if asked == "placement_layout" and flaw.name == "missing" else flaw


def make_sample(
    seed: int,
    number: int,
    size: int,
    strength: tuple[float, float],
    cutouts: Sequence[Image.Image] = (),
    backdrops: Sequence[Image.Image] = (),
) -> SyntheticSample:
    """Sample `number` of a data set; it depends on nothing but the arguments.

    Args:
        size: side of the images in pixels.
        strength: range that the strength of flaws is drawn from.
        cutouts: a user's products; empty: drawn ones.
        backdrops: a user's photos; empty: a wall and a table.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]
    product = cutout_product(cutouts[rng.integers(len(cutouts))]) if cutouts else random_product(rng)

    def scene():
        return random_scene(rng, backdrops[rng.integers(len(backdrops))] if backdrops else None)

    images = [_jpeg(render(product, scene(), (), size))]
    scenes, asked_flaws, all_flaws = [], [], []
    for _ in range(_CANDIDATES):
        flaw = random_flaw(rng, dimension, product, strength) if rng.random() < 0.5 else None
        present = tuple(x for x in (flaw, _distraction(rng, dimension, product, strength)) if x is not None)
        scenes.append(scene())
        asked_flaws.append(flaw)
        all_flaws.append(present)
        images.append(_jpeg(render(product, scenes[-1], present, size)))
    return SyntheticSample(
        dimension=dimension,
        images=tuple(images),
        answer=tuple(letter for letter, flaw in zip("ABCD", asked_flaws, strict=True) if flaw is None),
        reasoning=write_reasoning(rng, dimension, product, scenes, asked_flaws),
        flaws=tuple(all_flaws),
    )
