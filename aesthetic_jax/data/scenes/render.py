"""Renders a scene: wall, table, light, the product, its shading and its shadow.

Lengths are fractions of the image's side, with x to the right and y down. The light comes from the
left or the right.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from aesthetic_jax.data.scenes.flaws import Flaw, change_cutout
from aesthetic_jax.data.scenes.products import Product

_HORIZON, _EDGE = 0.50, 0.90  # y of the wall's foot and of the table's front edge
_RISE = 0.3  # how far back a shadow reaches, per unit sideways


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where a product stands and how it is lit.

    Attributes:
        light: -1 from the left, 1 from the right.
        shadow: length of the shadow in heights of the product.
        centre: x of the middle of the product's foot.
        ground: y of the product's foot.
        scale: scale of the product.
        wall: RGB colour, 0 to 255.
        table: RGB colour, 0 to 255.
        backdrop: a photo in place of wall and table, or None.
    """

    light: int
    shadow: float
    centre: float
    ground: float
    scale: float
    wall: tuple[int, int, int]
    table: tuple[int, int, int]
    backdrop: Image.Image | None = None


def random_scene(rng: np.random.Generator, backdrop: Image.Image | None = None) -> Scene:
    """Draws a scene with muted colours and the product near the middle."""
    wall = rng.integers(150, 215) + rng.integers(-14, 15, 3)
    table = rng.integers(105, 165) + np.array([18, 4, -14]) + rng.integers(-12, 13, 3)
    return Scene(
        light=int(rng.choice([-1, 1])),
        shadow=float(rng.uniform(0.55, 0.75)),
        centre=float(rng.uniform(0.45, 0.55)),
        ground=float(rng.uniform(0.79, 0.83)),
        scale=float(rng.uniform(0.92, 1.04)),
        wall=_rgb(wall),
        table=_rgb(table),
        backdrop=backdrop,
    )


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(x) for x in values)
    return red, green, blue


def _background(scene: Scene, side: int) -> np.ndarray:
    """Wall, brighter towards the light, and table with its front edge, as float32.

    Shape [side, side, 3]; without a backdrop the values are not clipped to 0..255.
    """
    if scene.backdrop is not None:
        return np.asarray(scene.backdrop.convert("RGB").resize((side, side)), np.float32).copy()
    y = (np.arange(side) + 0.5) / side
    rows = np.where(
        (y < _HORIZON)[:, None], np.array(scene.wall, np.float32), np.array(scene.table, np.float32)
    )
    rows = rows * np.where(y < _HORIZON, 1.0, 0.9 + 0.2 * (y - _HORIZON))[:, None]
    rows[y >= _EDGE] *= 0.55
    x = np.linspace(-1, 1, side, dtype=np.float32)
    return rows[:, None] * (1 + 0.18 * scene.light * x)[None, :, None]


def _shade(cutout: Image.Image, light: int) -> Image.Image:
    """Lights a cut-out: bright towards the light, dark on the other side, with a highlight."""
    pixels = np.asarray(cutout).astype(np.float32)
    x = np.linspace(-1, 1, pixels.shape[1], dtype=np.float32) * light
    pixels[..., :3] *= (0.82 + 0.34 * x - 0.08 * x**2)[None, :, None]
    pixels[..., :3] += (70 * np.exp(-(((x - 0.62) / 0.13) ** 2)))[None, :, None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _cast(alpha: Image.Image, side: int, foot: tuple[float, float], slant: float) -> np.ndarray:
    """Lays a silhouette on the table as a shadow: [side, side], float32 in 0..1.

    Args:
        alpha: the product's silhouette.
        side: side of the image in pixels.
        foot: position of the product's foot in pixels.
        slant: sideways reach of the shadow in heights of the product; negative to the left.
    """
    rise = max(0.04, _RISE * abs(slant))
    x, y = foot
    per_row = slant / rise  # sideways shift per pixel that the shadow reaches back
    affine = (1, per_row, alpha.width / 2 - x - per_row * y, 0, 1 / rise, alpha.height - y / rise)
    cast = alpha.transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(cast.filter(ImageFilter.BoxBlur(side / 90)), np.float32) / 255


def _shadow_slants(scene: Scene, flaws: dict[str, Flaw]) -> list[tuple[float, float]]:
    """(slant, darkness) of each shadow; without a flaw a single one, away from the light."""
    away, length, dark = -scene.light, scene.shadow, 0.65
    if flaw := flaws.get("wrong_side"):
        return [(-away * length * (0.5 + 0.5 * flaw.strength), dark)]
    if flaw := flaws.get("wrong_length"):
        factor = 1 + 1.1 * flaw.strength if flaw.side > 0 else 1 - 0.85 * flaw.strength
        return [(away * length * factor, dark)]
    if flaw := flaws.get("missing"):
        return [(away * length, dark * 0.6 * (1 - flaw.strength))]
    if flaw := flaws.get("doubled"):
        return [(away * length, dark), (-away * length, dark * (0.4 + 0.6 * flaw.strength))]
    return [(away * length, dark)]


def render(product: Product, scene: Scene, flaws: tuple[Flaw, ...], size: int) -> Image.Image:
    """Renders a scene as an RGB image of `size` pixels per side.

    Args:
        product: the product in the scene.
        scene: the surroundings.
        flaws: flaws of the image, at most one per dimension.
        size: side of the image in pixels.
    """
    side = size * (3 if size < 128 else 2)
    by_name = {flaw.name: flaw for flaw in flaws}
    height = max(8, round(product.height * scene.scale * side))
    cutout = product.draw(height)
    for flaw in flaws:
        cutout = change_cutout(cutout, flaw, product)
    cutout = _shade(cutout, scene.light)
    if flaw := by_name.get("leaning"):
        cutout = cutout.rotate(
            flaw.side * (8 + 24 * flaw.strength), Image.Resampling.BILINEAR, expand=True
        )
        cutout = cutout.crop(cutout.getbbox())

    x, ground = scene.centre * side, scene.ground * side
    foot = ground
    if flaw := by_name.get("over_edge"):
        foot = ground = (_EDGE + 0.02 + 0.06 * flaw.strength) * side
    if flaw := by_name.get("floating"):
        foot = ground - (0.05 + 0.11 * flaw.strength) * side

    canvas = _background(scene, side)
    alpha = cutout.getchannel("A")
    for slant, dark in _shadow_slants(scene, by_name):
        canvas *= 1 - dark * _cast(alpha, side, (x, ground), slant)[..., None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if flaw := by_name.get("sunk"):  # the table hides the foot
        foot += (0.12 + 0.3 * flaw.strength) * cutout.height
        cutout = cutout.crop((0, 0, cutout.width, max(2, round(cutout.height - (foot - ground)))))
        foot = ground
    image.paste(cutout, (round(x - cutout.width / 2), round(foot - cutout.height)), cutout)
    return image.resize((size, size), Image.Resampling.BOX)
