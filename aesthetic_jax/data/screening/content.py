"""What a data set stores of a manifest's samples: their images, checked, and a fingerprint of everything."""

import collections
import concurrent.futures
import hashlib
import io
import itertools
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from aesthetic_jax.data.images import decode_image, image_format
from aesthetic_jax.data.manifest import Sample
from aesthetic_jax.errors import UserError

# Stored byte for byte; what is in another format is stored as PNG of the same pixels.
STORED_FORMATS = ("JPEG", "PNG", "WEBP")
_CHUNK = 8  # samples that go to a worker at once


class Content(NamedTuple):
    """A sample's images as they are stored, the original first, and the digest of its fields and files."""

    images: tuple[bytes, ...]
    digest: bytes


def read_contents(folder: str, samples: Sequence[Sample], workers: int, decode: bool) -> Iterator[Content]:
    """The samples' contents, in order; read ahead by no more than a few chunks a worker, so memory stays bounded.

    Args:
        folder: of the manifest.
        workers: processes; 1 is this one alone.
        decode: whether every image is decoded, to be sure that it can be; without it `images` is empty.

    Raises:
        UserError: names the first image that can't be read or decoded.
    """
    starts = range(0, len(samples), _CHUNK)
    if workers == 1:
        for start in starts:
            yield from _read_chunk(folder, samples[start : start + _CHUNK], decode)
        return
    # Fresh processes: a fork of one with threads may hang. Ctrl-C is the parent's to deal with.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        pending = collections.deque()
        for start in itertools.chain(starts, itertools.repeat(None)):
            if start is not None:
                pending.append(pool.submit(_read_chunk, folder, samples[start : start + _CHUNK], decode))
            elif not pending:
                return
            if start is None or len(pending) > 3 * workers:
                yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def fingerprint(digests: Iterator[bytes]) -> str:
    """SHA-256 of all samples' digests in order: equal for equal content, wherever its files lie."""
    whole = hashlib.sha256()
    for digest in digests:
        whole.update(digest)
    return whole.hexdigest()


def _read_chunk(folder: str, samples: Sequence[Sample], decode: bool) -> list[Content]:
    return [_read_sample(epath.Path(folder), sample, decode) for sample in samples]


def _read_sample(folder: epath.Path, sample: Sample, decode: bool) -> Content:
    files = []
    for image in sample.images:
        try:
            files.append((folder / image).read_bytes())
        except OSError as error:
            raise UserError(f"{folder / image}: can't be read ({error.strerror or error}); mend the file") from None
    fields = [sample.id, sample.split, sample.dimension, sample.answer, sample.reasoning, sample.question]
    digest = hashlib.sha256(json.dumps([*fields, [hashlib.sha256(file).hexdigest() for file in files]]).encode())
    images = (_storable(file, str(folder / image)) for file, image in zip(files, sample.images, strict=True))
    return Content(tuple(images) if decode else (), digest.digest())


def _storable(file: bytes, name: str) -> bytes:
    image = decode_image(file, name)
    if image_format(file) in STORED_FORMATS:
        return file
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
