"""The scoring engine: images in, results out, in one pass.

Fetching (threads that wait), decoding (threads that compute), the forward passes (this thread)
and whatever the caller does with the results overlap; between them lie queues of bounded length,
so memory does not grow with the number of images. An image is fetched and decoded once, however
many models score it.

Needs torch, Pillow and a `fetch` function; neither mlflow nor Postgres nor Airflow.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import NamedTuple

import numpy as np

from ml.images import Reason, Rejected, decode, resize
from ml.parallel import in_batches, map_ahead
from ml.program import Program

FETCH_THREADS = 16
Size = tuple[int, int]
Fetch = Callable[[str], tuple[bytes, str]]


class Item(NamedTuple):
    """An image to score: its place in the tables, its URI, ETag and size in bytes as listed."""

    night: date
    image_id: int
    uri: str
    etag: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What one version makes of one image: a prediction, or a rejection when `reason` is set.

    `pixels` (uint8, 3 x H x W) and `heat` (float32, H x W) are there for flagged images only.
    """

    item: Item
    model: str
    version: int
    predicted_class: str = ""
    confidence: float | None = None
    score: float | None = None
    threshold: float | None = None
    flagged: bool = False
    pixels: np.ndarray | None = None
    heat: np.ndarray | None = None
    reason: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image that is decoded: width x height in pixels, and bytes of the object."""

    max_pixels: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An image at each input size, or why it has none."""

    item: Item
    pixels: dict[Size, np.ndarray]
    rejected: Rejected | None = None


def score(
    items: Iterable[Item],
    programs: Sequence[Program],
    fetch: Fetch,
    limits: Limits,
    batch_size: int = 256,
) -> Iterator[list[Result]]:
    """Score images with one or more programs.

    Parameters
    ----------
    items: the images; read as the work proceeds, not ahead of it.
    programs: the versions that score each image.
    fetch: URI → (bytes, ETag); FileNotFoundError when the object is gone. Any other error stops
        the scoring and is the caller's to retry: an outage must not turn into rejections.
    limits: what is rejected instead of decoded.
    batch_size: images a forward pass.

    Yields
    ------
    The results of a batch: one for each image and program, in the order of the items.
    """
    sizes = sorted({program.info.input_size for program in programs})

    def load(item: Item) -> tuple[Item, bytes | Rejected]:
        return item, _fetch(item, fetch, limits)

    def unpack(loaded: tuple[Item, bytes | Rejected]) -> _Decoded:
        return _decode(*loaded, sizes, limits)

    cores = os.cpu_count() or 1
    fetched = map_ahead(load, items, threads=FETCH_THREADS, ahead=2 * FETCH_THREADS)
    decoded = map_ahead(unpack, fetched, threads=cores, ahead=2 * batch_size)
    for batch in in_batches(decoded, batch_size):
        yield list(chain.from_iterable(_predict(batch, program) for program in programs))


def _fetch(item: Item, fetch: Fetch, limits: Limits) -> bytes | Rejected:
    if item.bytes > limits.max_bytes:
        return Rejected(Reason.TOO_MANY_BYTES, f"{item.bytes} bytes; limit {limits.max_bytes}")
    try:
        content, etag = fetch(item.uri)
    except FileNotFoundError:
        return Rejected(Reason.GONE, "the object was there when the night was listed")
    if etag != item.etag:
        return Rejected(Reason.CHANGED, f"ETag {etag} instead of {item.etag} as listed")
    return content


def _decode(
    item: Item, content: bytes | Rejected, sizes: Sequence[Size], limits: Limits
) -> _Decoded:
    if isinstance(content, Rejected):
        return _Decoded(item, {}, content)
    largest = max(size[0] for size in sizes), max(size[1] for size in sizes)
    try:
        image = decode(content, max_pixels=limits.max_pixels, at_least=largest)
        return _Decoded(item, {size: resize(image, size) for size in sizes})
    except Rejected as rejected:
        return _Decoded(item, {}, rejected)


def _predict(batch: Sequence[_Decoded], program: Program) -> Iterator[Result]:
    import torch

    info = program.info
    name, version = info.model, info.version or 0
    good = [image for image in batch if image.rejected is None]
    for image in batch:
        if image.rejected is not None:
            reason, detail = image.rejected.reason, image.rejected.detail
            yield Result(image.item, name, version, reason=reason, detail=detail)
    if not good:
        return
    pixels = np.stack([image.pixels[info.input_size] for image in good])
    outputs = program.predict(torch.from_numpy(pixels))
    if info.task == "classification":
        yield from _classified(good, outputs.probabilities, program)
    else:
        yield from _judged(good, pixels, outputs.scores, outputs.heatmaps, program)


def _classified(
    images: Sequence[_Decoded], probabilities: np.ndarray, program: Program
) -> Iterator[Result]:
    info = program.info
    best = probabilities.argmax(axis=1)
    for image, row, index in zip(images, probabilities, best, strict=True):
        if not np.isfinite(row).all():
            yield _not_finite(image, program)
            continue
        yield Result(
            image.item,
            info.model,
            info.version or 0,
            predicted_class=info.classes[index],
            confidence=float(row[index]),
        )


def _judged(
    images: Sequence[_Decoded],
    pixels: np.ndarray,
    scores: np.ndarray,
    heatmaps: np.ndarray,
    program: Program,
) -> Iterator[Result]:
    info = program.info
    assert info.threshold is not None  # checked when the program was loaded
    for image, seen, score, heat in zip(images, pixels, scores, heatmaps, strict=True):
        if not np.isfinite(score):
            yield _not_finite(image, program)
            continue
        flagged = bool(score >= info.threshold)
        yield Result(
            image.item,
            info.model,
            info.version or 0,
            predicted_class="anomalous" if flagged else "normal",
            score=float(score),
            threshold=info.threshold,
            flagged=flagged,
            pixels=seen if flagged else None,
            heat=heat if flagged else None,
        )


def _not_finite(image: _Decoded, program: Program) -> Result:
    return Result(
        image.item,
        program.info.model,
        program.info.version or 0,
        reason=Reason.NOT_FINITE,
        detail="the program's output is not a finite number",
    )
