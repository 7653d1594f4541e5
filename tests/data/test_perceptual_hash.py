import io
import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from aesthetic_jax.data import perceptual_hash
from aesthetic_jax.data.perceptual_hash import (
    COLOUR_TOLERANCE,
    DISTANCE,
    describe_image,
    group_images,
    near_pairs,
)
from aesthetic_jax.data.scenes.products import Product, draw_product
from aesthetic_jax.data.scenes.render import random_scene, render


def scene(seed, size=200, kind="bottle", colour="red", label="yellow", cap="white", backdrop=0):
    """A product in front of a backdrop, both determined by the arguments."""
    product = Product(
        name=kind,
        colour=colour,
        label=label,
        cap=cap,
        draw=lambda height: draw_product(kind, colour, label, cap, 2, height),
        height=0.6,
        label_box=(0.0, 0.4, 1.0, 0.8),
        cap_box=(0.0, 0.0, 1.0, 0.2),
    )
    return render(product, random_scene(np.random.default_rng((seed, backdrop))), (), size)


def recoded(image, quality=60, scale=(1.0, 1.0)):
    buffer = io.BytesIO()
    size = [round(side * factor) for side, factor in zip(image.size, scale, strict=True)]
    image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def groups(*images, distance=DISTANCE):
    """Labels, numbered in the order they come."""
    described = [describe_image(image) for image in images]
    labels = group_images(
        np.array([x for x, _ in described], np.uint64),
        np.stack([x for _, x in described]),
        distance,
    )
    order = list(dict.fromkeys(labels.tolist()))
    return [order.index(label) for label in labels]


# --- the description of one image -----------------------------------------------------------------


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_hash_is_the_sign_of_scipys_spectrum(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    value, colours = describe_image(Image.fromarray(pixels))
    spectrum = dctn(pixels.astype(float) @ [0.299, 0.587, 0.114], norm="ortho")
    order = sorted(
        itertools.product(range(32), repeat=2), key=lambda x: (sum(x), abs(x[0] - x[1]), x)
    )[1:65]
    sure = [abs(spectrum[place] - 4) > 1e-2 for place in order]
    assert [value >> k & 1 for k in range(64) if sure[k]] == [
        spectrum[x] > 4 for x, y in zip(order, sure, strict=True) if y
    ]
    means = [
        pixels[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean((0, 1))
        for i in range(4)
        for j in range(4)
    ]
    assert np.abs(colours.reshape(16, 3) - np.array(means)).max() <= 0.5 + 1e-3


def test_noise_on_flat_images_sets_no_bits():
    rng = np.random.default_rng(0)
    for shade in (3, 128, 252):
        noisy = np.clip(rng.normal(shade, 3, (90, 120, 3)), 0, 255).astype(np.uint8)
        assert describe_image(Image.fromarray(noisy))[0] == 0


# --- which images are near-same -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_found(seed):
    image = scene(seed)
    ways = [
        (30, (1, 1)),
        (90, (1, 1)),
        (70, (0.5, 0.5)),
        (80, (2, 2)),
        (60, (1.3, 0.8)),
        (85, (0.31, 0.31)),
    ]
    assert groups(image, *(recoded(image, *way) for way in ways)) == [0] * 7


@pytest.mark.parametrize("size", [56, 448])
def test_different_pictures_are_not_taken_for_copies(size):
    pictures = [
        scene(0, size, **x)
        for x in ({}, {"colour": "blue"}, {"label": "green"}, {"kind": "box"}, {"backdrop": 1})
    ]
    pictures += [scene(0, size, kind="jar"), scene(0, size, kind="jar", colour="green", backdrop=1)]
    assert groups(*pictures) == list(range(7))
    assert groups(*pictures, *(recoded(x, 80) for x in pictures)) == 2 * list(range(7))


def test_a_hash_alone_would_take_a_red_bottle_for_a_blue_one():
    red, blue = scene(3), scene(3, colour="blue")
    assert bin(describe_image(red)[0] ^ describe_image(blue)[0]).count("1") <= DISTANCE
    assert groups(red, blue) == [0, 1]


def test_equal_colours_don_t_make_a_copy():
    rng = np.random.default_rng(0)
    fields = rng.normal(0, 40, (2, 4, 4, 8, 8))
    fields -= fields.mean((3, 4), keepdims=True)
    images = [
        Image.fromarray((128 + x.swapaxes(1, 2).reshape(32, 32)).clip(0, 255).astype(np.uint8))
        for x in fields
    ]
    assert groups(*(image.convert("RGB") for image in images)) == [0, 1]


# --- the search -----------------------------------------------------------------------------------


@st.composite
def clustered(draw):
    """Hashes a few bits away from few centres, so that near pairs exist at all distances."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(0, 50))
    hashes = rng.integers(0, 2**64, max(1, n // 5), np.uint64)[rng.integers(0, max(1, n // 5), n)]
    for k in range(n):
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            hashes[k] ^= np.uint64(1) << np.uint64(bit)
    return hashes, rng.integers(0, 12, n)


@given(clustered(), st.integers(0, 12), st.integers(0, 14), st.sampled_from([1, 7, 1 << 18]))
@settings(max_examples=150, deadline=None)
def test_multi_index_search_equals_brute_force(data, distance, tolerance, block):
    hashes, levels = data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perceptual_hash, "_BLOCK", block)
        found = [
            (i, j)
            for pair in near_pairs(hashes, distance, levels, tolerance)
            for i, j in zip(*pair, strict=True)
        ]
    assert {tuple(sorted(map(int, pair))) for pair in found} == {
        (i, j)
        for i, j in itertools.combinations(range(len(hashes)), 2)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance
        and abs(levels[i] - levels[j]) <= tolerance
    }
    assert all(i != j for i, j in found)


@given(clustered(), st.integers(0, 10), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_groups_are_the_chains_of_near_same_pairs(data, distance, seed):
    hashes, rng = data[0], np.random.default_rng(seed)
    colours = (
        rng.integers(0, 3, (len(hashes), 1)) * 100 + rng.integers(0, 12, (len(hashes), 48))
    ).astype(np.uint8)
    expected = list(range(len(hashes)))
    for i, j in itertools.combinations(range(len(hashes)), 2):
        apart = np.sqrt(np.mean((colours[i].astype(float) - colours[j]) ** 2))
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance and apart <= COLOUR_TOLERANCE:
            expected = [expected[i] if x == expected[j] else x for x in expected]
    labels = group_images(hashes, colours, distance)
    pairs = set(zip(labels.tolist(), expected, strict=True))
    assert len(pairs) == len(set(expected)) == len(set(labels.tolist()))


def test_long_chains_and_stars_are_joined_at_once():
    for i, j in (
        (np.arange(99_999), np.arange(1, 100_000)),
        (np.arange(99_999), np.full(99_999, 99_999)),
    ):
        for first, second in ((i, j), (j, i), (i[::-1], j[::-1])):
            parent = np.arange(100_000)
            perceptual_hash._join(parent, first, second)
            assert not parent.any()


def test_memory_stays_in_bounds_where_everything_is_near():
    n = 3000
    rng = np.random.default_rng(0)
    hashes = np.uint64(1) << rng.integers(0, 64, n).astype(np.uint64)
    colours = rng.integers(127, 130, (n, 48)).astype(np.uint8)
    tracemalloc.start()
    labels = group_images(hashes, colours)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(labels.tolist())) == 1
    assert peak < 100e6  # 4.5 million pairs
