"""One synthetic sample from a seed and a number: five images, the answer and its reasoning."""

import dataclasses
import io
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image

from aesthetic_jax.data.answers import option_letters
from aesthetic_jax.data.manifest import DIMENSIONS
from aesthetic_jax.data.scenes.facts import RenderedImage, rendered_image
from aesthetic_jax.data.scenes.flaws import BREAKS, PARTS, Flaw, random_flaw
from aesthetic_jax.data.scenes.products import Product, cutout_product, random_product
from aesthetic_jax.data.scenes.reasoning import write_description, write_reasoning
from aesthetic_jax.data.scenes.render import Scene, random_scene, render

_CANDIDATES = 4
_FAILS = 0.5  # probability that a candidate fails the dimension asked about
_DISTRACTS = 0.5  # probability of a flaw that doesn't break it, in each part without one that does
# Probability of a flaw in each part of a described picture. Flaws of products are hardest to see.
_DESCRIBED_FLAWS = {"product": 0.8, "shadow": 0.6, "placement": 0.6}
_RECOLOURED = ("other_colour", "other_label")
_DOES = {
    "appearance_deformation": "keep its shape, label and cap",
    "physical_shadow": "have a shadow that fits the light",
    "placement_layout": "stand upright and firmly",
    "extension_rationality": "look whole, with nothing grown on",
}


@dataclasses.dataclass(frozen=True)
class SyntheticSample:
    """A rendered sample.

    Attributes:
        dimension: the dimension asked about.
        images: JPEG files, the original first.
        answer: letters of the candidates that pass.
        reasoning: chain of thought.
        facts: what each image shows, the original first.
        question: replaces the dimension's question, or None.
    """

    dimension: str
    images: tuple[bytes, ...]
    answer: tuple[str, ...]
    reasoning: str
    facts: tuple[RenderedImage, ...]
    question: str | None = None


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _flaws(
    rng: np.random.Generator,
    asked: str,
    product: Product,
    strength: tuple[float, float],
    breaking: Collection[str],
) -> tuple[Flaw, ...]:
    """Draws the flaws of one candidate; at most one breaks the dimension asked about."""
    fails = rng.random() < _FAILS
    flaws = []
    for part in PARTS.values():
        failing = [name for name in part if asked in BREAKS[name] and name in breaking]
        harmless = [name for name in part if asked not in BREAKS[name]]
        if asked == "placement_layout":  # without a shadow, floating can't be told from standing
            harmless = [name for name in harmless if name != "missing"]
        if failing and fails:
            flaws.append(random_flaw(rng, failing, product, strength))
        elif harmless and rng.random() < _DISTRACTS:
            flaws.append(random_flaw(rng, harmless, product, strength))
    return tuple(flaws)


def make_sample(
    seed: int,
    number: int,
    size: int,
    strength: tuple[float, float],
    thorough: float = 1.0,
    cutouts: Sequence[Image.Image] = (),
    backdrops: Sequence[Image.Image] = (),
    breaking: Collection[str] = tuple(BREAKS),
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
        breaking: flaws that candidates may fail by. If none of them breaks the dimension, all
            candidates pass.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]
    product = _draw_product(rng, cutouts)
    scenes = [_draw_scene(rng, backdrops) for _ in range(1 + _CANDIDATES)]
    drawn = (_flaws(rng, dimension, product, strength, breaking) for _ in range(_CANDIDATES))
    flaws = [(), *drawn]
    facts = tuple(
        rendered_image(product, scene.light, present)
        for scene, present in zip(scenes, flaws, strict=True)
    )
    return SyntheticSample(
        dimension=dimension,
        images=tuple(_jpeg(render(product, *x, size)) for x in zip(scenes, flaws, strict=True)),
        answer=tuple(
            letter
            for letter, present in zip(option_letters(_CANDIDATES), flaws[1:], strict=True)
            if not any(dimension in BREAKS[flaw.name] for flaw in present)
        ),
        reasoning=write_reasoning(rng, dimension, facts, rng.random() < thorough),
        facts=facts,
    )


def make_description(
    seed: int, number: int, size: int, strength: tuple[float, float]
) -> SyntheticSample:
    """Makes sample `number` of a data set of descriptions: one image and its description.

    Changed colours are left out: nobody can see them without the original.

    Args:
        seed: seed of the data set.
        number: number of the sample, from 0; it also decides the dimension.
        size: side of the image in pixels.
        strength: range that the strength of flaws is drawn from.
    """
    rng = np.random.default_rng((seed, number))
    dimension = DIMENSIONS[number % len(DIMENSIONS)]
    product, scene = random_product(rng), random_scene(rng)
    flaws = tuple(
        random_flaw(rng, [name for name in names if name not in _RECOLOURED], product, strength)
        for part, names in PARTS.items()
        if rng.random() < _DESCRIBED_FLAWS[part]
    )
    facts = rendered_image(product, scene.light, flaws)
    return SyntheticSample(
        dimension=dimension,
        images=(_jpeg(render(product, scene, flaws, size)),),
        answer=(),
        reasoning=write_description(rng, dimension, facts),
        facts=(facts,),
        question=f"Describe Image-1. Does it {_DOES[dimension]}?",
    )


def _draw_product(rng: np.random.Generator, cutouts: Sequence[Image.Image]) -> Product:
    return cutout_product(_choose(rng, cutouts)) if cutouts else random_product(rng)


def _draw_scene(rng: np.random.Generator, backdrops: Sequence[Image.Image]) -> Scene:
    return random_scene(rng, _choose(rng, backdrops) if backdrops else None)


def _choose(rng: np.random.Generator, images: Sequence[Image.Image]) -> Image.Image:
    return images[int(rng.integers(len(images)))]
