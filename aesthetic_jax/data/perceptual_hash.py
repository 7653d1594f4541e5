"""Finds near-same images: re-encoded, scaled or squeezed copies, among any number of images.

An image is described by a 64-bit hash of its coarse structure and by the mean colours of 4 x 4
fields. Two images are near-same if their hashes differ in at most DISTANCE bits and their colours
by at most COLOUR_TOLERANCE. The hash makes the search fast; the colours make it precise, since
hashes alone would take many products in front of one backdrop for copies. Cropped, mirrored or
brightened copies are not found.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8, UInt64
from PIL import Image

# Among 15,000 rendered images (56 pixels, one kind of backdrop), 100,000 pairs of different samples
# meet the first limit and none meets both. Copies of JPEG quality 30 to 90, and copies
# scaled by 0.5 to 2, stay within both.
DISTANCE = 6  # bits of 64
COLOUR_TOLERANCE = 4  # RMS difference of the 48 mean values, of 255

_SIDE = 32  # pixels of the reduced image
_FIELDS = 4  # fields per side whose mean colour is kept
# A coefficient counts as positive above this grey level, so that noise in flat or symmetric images
# sets no bits.
_DEAD_ZONE = 4.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLOCK = 1 << 18  # pairs compared at once, in 64 MB
_CHUNKS = 4  # of a hash's bits


def _cosines() -> np.ndarray:
    """The orthonormal DCT-II as a matrix [frequency, position]."""
    frequency, position = np.arange(_SIDE)[:, None], np.arange(_SIDE)
    rows = np.sqrt(2 / _SIDE) * np.cos(np.pi * (position + 0.5) * frequency / _SIDE)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


_COSINES = _cosines()
# The 64 lowest frequencies without the mean, along the diagonals of the spectrum.
_FREQUENCIES = sorted(
    itertools.product(range(_SIDE), repeat=2), key=lambda x: (sum(x), abs(x[0] - x[1]), x)
)
_ROWS, _COLUMNS = np.array(_FREQUENCIES[1:65]).T


def describe_image(image: Image.Image) -> tuple[int, UInt8[np.ndarray, " 48"]]:
    """Hash and mean colours of an RGB image.

    Bit k of the hash is set where the k-th lowest frequency of the image's DCT is positive. The
    image is first resized to 32 x 32 grey pixels, whatever its aspect ratio.
    """
    small = np.asarray(
        image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0), np.float32
    )
    spectrum = _COSINES @ (small @ _LUMA) @ _COSINES.T
    bits = spectrum[_ROWS, _COLUMNS] > _DEAD_ZONE
    width = _SIDE // _FIELDS
    colours = small.reshape(_FIELDS, width, _FIELDS, width, 3).mean((1, 3)).round()
    value = int(np.packbits(bits, bitorder="little").view("<u8")[0])
    return value, colours.astype(np.uint8).ravel()


def near_pairs(
    hashes: UInt64[np.ndarray, " n"], distance: int, levels: Int[np.ndarray, " n"], tolerance: int
) -> Iterator[tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]]:
    """Finds all pairs of hashes that differ in at most `distance` bits and have close levels.

    Exact, by multi-index hashing (Norouzi et al., 2012). The bits are dealt to four chunks, and
    chunk i has a limit t_i, with sum(t_i + 1) = distance + 1. Near hashes then differ in at most
    t_i bits in some chunk i, so only hashes in buckets within t_i bits of each other are compared.
    Inside a bucket, hashes are sorted by level.

    Args:
        hashes: 64 bits each.
        distance: largest number of differing bits in a pair.
        levels: a number >= 0 for each hash.
        tolerance: largest difference between the levels of a pair.

    Yields:
        Indices (i, j) of pairs, i != j, in arrays. A pair may come more than once, in either order.
    """
    span = int(levels.max(initial=0)) + 1
    # Bits that are set in half of the hashes separate best; each chunk gets its share of them.
    imbalance = [
        abs(0.5 - float(np.mean(hashes >> np.uint64(bit) & np.uint64(1)))) if len(hashes) else 0.0
        for bit in range(64)
    ]
    bits = np.argsort(imbalance, kind="stable")
    for chunk in range(_CHUNKS):
        chunk_bits = bits[chunk::_CHUNKS]
        value = np.zeros(len(hashes), np.int64)
        for bit in chunk_bits:
            value = value << 1 | (hashes >> np.uint64(bit) & np.uint64(1)).astype(np.int64)
        keys = value * span + levels
        order = np.argsort(keys, kind="stable")
        keys, value, level, ordered = keys[order], value[order], levels[order], hashes[order]
        for mask in _masks(len(chunk_bits), (distance + 1 + chunk) // _CHUNKS - 1):
            # Two buckets are compared once, from the one without the mask's highest bit. Inside
            # one bucket (mask 0), each hash is compared with those after it.
            rows = np.flatnonzero(value & (1 << mask.bit_length() >> 1) == 0)
            base, own = (value[rows] ^ mask) * span, level[rows]
            last = np.searchsorted(keys, base + np.minimum(own + tolerance, span - 1), "right")
            first = (
                np.searchsorted(keys, base + np.maximum(own - tolerance, 0), "left")
                if mask
                else rows + 1
            )
            for i, j in _expand(rows, first, last - first):
                near = np.bitwise_count(ordered[i] ^ ordered[j]) <= distance
                if near.any():
                    yield order[i[near]], order[j[near]]


def _masks(width: int, most: int) -> Iterator[int]:
    """All numbers of `width` bits, at most `most` of them set."""
    for number in range(most + 1):
        for bits in itertools.combinations(range(width), number):
            yield sum(1 << bit for bit in bits)


def _expand(
    rows: np.ndarray, first: np.ndarray, count: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows[k], first[k] + i) for every k and i < count[k], as columns of about _BLOCK rows."""
    ends = np.cumsum(count)
    start = 0
    while start < len(rows):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _BLOCK, "right")))
        counts = count[start:stop]
        offsets = np.repeat(first[start:stop] - (ends[start:stop] - counts - before), counts)
        yield np.repeat(rows[start:stop], counts), offsets + np.arange(len(offsets))
        start = stop


def group_images(
    hashes: UInt64[np.ndarray, " n"], colours: UInt8[np.ndarray, "n 48"], distance: int = DISTANCE
) -> Int[np.ndarray, " n"]:
    """The number of each image's group; a chain of near-same pairs joins images in one group.

    Memory: 0.25 kB per image, and 100 MB for the pairs being compared.

    Args:
        hashes: as `describe_image` returns them.
        colours: as `describe_image` returns them.
        distance: largest number of differing bits between hashes of near-same images.
    """
    if not len(hashes):
        return np.zeros(0, np.int64)
    described = np.concatenate([hashes[:, None].view(np.uint8), colours], axis=1)
    # Equal descriptions are compared once.
    _, first, inverse = np.unique(
        described.view(f"V{described.shape[1]}"), return_index=True, return_inverse=True
    )
    del described
    hashes, colours = hashes[first], colours[first]
    parent = np.arange(len(first))
    size = colours.shape[1]
    # Colours that differ by RMS x have sums that differ by at most x times their number.
    sums = colours.sum(1, dtype=np.int64)
    for pairs in near_pairs(hashes, distance, sums, COLOUR_TOLERANCE * size):
        i, j = np.compress(parent[pairs[0]] != parent[pairs[1]], pairs, axis=1)
        error = colours[i].astype(np.int16) - colours[j]
        same = np.einsum("kc,kc->k", error, error, dtype=np.int32) <= COLOUR_TOLERANCE**2 * size
        _join(parent, i[same], j[same])
    return parent[inverse.ravel()]


def _join(parent: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Joins the groups of i[k] and j[k] for every k, in place.

    Before and after, parent[k] is the least member of k's group.
    """
    while True:
        i, j = parent[i], parent[j]
        separate = i != j
        if not separate.any():
            return
        i, j = np.minimum(i, j)[separate], np.maximum(i, j)[separate]
        np.minimum.at(parent, j, i)  # of several, the least; the next pass joins the others
        while (parent[parent] != parent).any():
            parent[:] = parent[parent]
