"""The scoring engine: images in, results out, in one pass.

A thread fetches and makes batches of what arrives. A few threads for each core take a batch each,
decode it and run it through the programs; this thread hands their results on. Between them
lie queues of bounded length, so memory does not grow with the number of images. An image is
fetched and decoded once, however many models score it.

Needs numpy, Pillow, simplejpeg, OpenCV, what runs the programs (`ml.program.runtime`) and a `fetch`
function; neither mlflow nor Postgres nor Airflow.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np

from ml.images.decoding import decode
from ml.images.rejection import Reason, RejectedError
from ml.images.resizing import empty_batch, resize
from ml.parallel import parallel_map, prefetch
from ml.program.device import Device
from ml.program.info import ANOMALOUS, CLASSIFICATION, NORMAL
from ml.program.program import Outputs, Program
from ml.storage.download import DownloadRequest, DownloadResult

# Images a forward pass: on a GPU enough to fill it, on a CPU no more than its caches hold.
BATCH = {"cpu": 128, "cuda": 256}
# A batch of large images is handed over earlier, so that all threads get some.
_BYTES_A_BATCH = 4 * 2**20
Size = tuple[int, int]


class Item(NamedTuple):
    """An image to score: its place in the tables, its URI, ETag and size in bytes as listed."""

    night: date
    image_id: int
    uri: str
    etag: str
    bytes: int


Fetch = Callable[[Iterable[DownloadRequest[Item]]], Iterator[DownloadResult[Item]]]


class Result(NamedTuple):
    """What one version makes of one image: a prediction, or a rejection when `reason` is set.

    `flagged` says that `score` has reached the version's threshold, `review` that `novelty` (None
    where the version gives none) has reached the one for that; either goes without the other.
    `pixels` (uint8, 3 x H x W) and `heat` (float32, coarser) are there for flagged images only.
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
    novelty: float | None = None
    review: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image that is decoded: width x height in pixels, and bytes of the object."""

    max_pixels: int
    max_bytes: int


Loaded = tuple[Item, bytes | RejectedError]


def score(
    items: Iterable[Item],
    programs: Sequence[Program],
    fetch: Fetch,
    limits: Limits,
    batch_size: int | None = None,
) -> Iterator[list[Result]]:
    """Score images with one or more programs, all on the same device.

    Args:
        items: the images; read as the work proceeds, not ahead of it.
        programs: the versions that score each image.
        fetch: as `ml.storage.download.download`. An error it raises stops the scoring and is the
            caller's to retry: an outage must not turn into rejections.
        limits: what is rejected instead of decoded.
        batch_size: images a forward pass; None: what suits the device.

    Yields:
        The results of a batch: one for each image and program. The images come in the order in
        which they arrived.
    """
    if not programs:
        return
    device = programs[0].device
    threads = threads_for(device)
    sizes = sorted({program.info.input_size for program in programs})
    batches = _batches(_load(items, fetch, limits), batch_size or BATCH[device])

    def work(batch: list[Loaded]) -> list[Result]:
        return _score_batch(batch, programs, sizes, limits)

    arriving = prefetch(batches, buffer_size=threads)
    try:
        yield from parallel_map(work, arriving, threads=threads, buffer_size=threads + 1)
    finally:
        arriving.close()


def threads_for(device: Device) -> int:
    """Threads that take a batch each: more than there are cores, since each waits now and then,
    for the GPU, or for another to have had Python's lock.
    """
    cores = os.cpu_count() or 1
    return 2 * cores if device == "cpu" else cores + 2


def _load(items: Iterable[Item], fetch: Fetch, limits: Limits) -> Iterator[Loaded]:
    """Each image's bytes as they arrive, or why there are none."""
    refused: list[Item] = []

    def wanted() -> Iterator[DownloadRequest[Item]]:
        for item in items:
            if item.bytes > limits.max_bytes:
                refused.append(item)
            else:
                yield DownloadRequest(item, item.uri, item.bytes, item.etag)

    for item, content, etag in fetch(wanted()):
        if content is None:
            detail = "the object was there when the night was listed"
            yield item, RejectedError(Reason.GONE, detail)
        elif etag != item.etag:
            detail = f"ETag {etag} instead of {item.etag} as listed"
            yield item, RejectedError(Reason.CHANGED, detail)
        else:
            yield item, content
    for item in refused:
        detail = f"{item.bytes} bytes; limit {limits.max_bytes}"
        yield item, RejectedError(Reason.TOO_MANY_BYTES, detail)


def _batches(loaded: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Batches of up to `size` images; the first is smaller, so that no core waits long for it."""
    batch: list[Loaded] = []
    weight, enough = 0, max(1, size // 2)
    for item, content in loaded:
        batch.append((item, content))
        weight += len(content) if isinstance(content, bytes) else 0
        if len(batch) == enough or weight >= _BYTES_A_BATCH:
            yield batch
            batch, weight, enough = [], 0, min(2 * enough, size)
    if batch:
        yield batch


def _score_batch(
    batch: Sequence[Loaded], programs: Sequence[Program], sizes: Sequence[Size], limits: Limits
) -> list[Result]:
    pixels = {size: empty_batch(len(batch), size) for size in sizes}
    good: list[Item] = []
    bad: list[tuple[Item, RejectedError]] = []
    for item, content in batch:
        try:
            _decode(content, pixels, len(good), limits)
            good.append(item)
        except RejectedError as rejected:
            bad.append((item, rejected))
    results: list[Result] = []
    for program in programs:
        name, version = program.info.model, program.info.version or 0
        results += [
            Result(item, name, version, reason=why.reason, detail=why.detail) for item, why in bad
        ]
        if good:
            results += _predict(good, pixels[program.info.input_size][: len(good)], program)
    return results


def _decode(
    content: bytes | RejectedError, pixels: dict[Size, np.ndarray], row: int, limits: Limits
) -> None:
    if isinstance(content, RejectedError):
        raise content
    largest = max(size[0] for size in pixels), max(size[1] for size in pixels)
    image = decode(content, max_pixels=limits.max_pixels, target_size=largest)
    for size, batch in pixels.items():
        resize(image, size, out=batch[row])


def _predict(images: Sequence[Item], pixels: np.ndarray, program: Program) -> list[Result]:
    outputs = program.predict(pixels)
    if program.info.task == CLASSIFICATION:
        return _classified(images, outputs, program)
    return _judged(images, pixels, outputs, program)


def _classified(images: Sequence[Item], outputs: Outputs, program: Program) -> list[Result]:
    name, version = program.info.model, program.info.version or 0
    best = outputs.probabilities.argmax(axis=1)
    confidences = outputs.probabilities[np.arange(len(best)), best].tolist()
    finite = np.isfinite(outputs.probabilities).all(axis=1).tolist()
    return [
        Result(item, name, version, program.info.classes[index], confidence)
        if whole
        else _not_finite(item, program)
        for item, index, confidence, whole in zip(
            images, best.tolist(), confidences, finite, strict=True
        )
    ]


def _judged(
    images: Sequence[Item], pixels: np.ndarray, outputs: Outputs, program: Program
) -> list[Result]:
    name, version, threshold = program.info.model, program.info.version or 0, program.info.threshold
    assert threshold is not None  # checked when the program was loaded
    flags = (outputs.scores >= threshold).tolist()
    novelties, marks = _reviewed(outputs, program.info.novelty_threshold)
    finite = np.isfinite(outputs.scores)
    if len(outputs.novelties):
        finite &= np.isfinite(outputs.novelties)
    results = []
    rows = zip(
        images, outputs.scores.tolist(), flags, novelties, marks, finite.tolist(), strict=True
    )
    for row, (item, value, flagged, novelty, review, whole) in enumerate(rows):
        if not whole:
            results.append(_not_finite(item, program))
            continue
        result = Result(
            item, name, version, NORMAL, None, value, threshold, novelty=novelty, review=review
        )
        if flagged:
            # Copies, so that one anomaly does not keep its whole batch in memory.
            seen, heat = pixels[row].copy(), outputs.heatmaps[row].copy()
            result = result._replace(
                predicted_class=ANOMALOUS, flagged=True, pixels=seen, heat=heat
            )
        results.append(result)
    return results


def _reviewed(
    outputs: Outputs, threshold: float | None
) -> tuple[Sequence[float | None], Sequence[bool]]:
    """Each image's novelty, and whether it is marked for review."""
    if not len(outputs.novelties):
        return [None] * len(outputs), [False] * len(outputs)
    if threshold is None:
        return outputs.novelties.tolist(), [False] * len(outputs)
    return outputs.novelties.tolist(), (outputs.novelties >= threshold).tolist()


def _not_finite(item: Item, program: Program) -> Result:
    return Result(
        item,
        program.info.model,
        program.info.version or 0,
        reason=Reason.NOT_FINITE,
        detail="the program's output is not a finite number",
    )
