"""The scoring engine: images in, results out, in one pass.

One thread fetches images and collects them in batches. A few threads per core take a batch each,
decode it and run it through the programs; the caller's thread hands the results on. Bounded queues
lie between them, so memory does not grow with the number of images. An image is fetched and decoded
once, however many models score it.

The engine needs numpy, Pillow, simplejpeg, OpenCV, what runs the programs (`ml.program.runtime`)
and a `fetch` function. It needs neither MLflow nor Postgres nor Airflow.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

import numpy as np

from ml.config.schema import Limits
from ml.cores import usable_cores
from ml.images.decoding import decode
from ml.images.rejection import Reason, RejectedError
from ml.images.resizing import resize
from ml.parallel import parallel_map, prefetch
from ml.program.device import Device
from ml.program.info import ANOMALOUS, CLASSIFICATION, NORMAL
from ml.program.program import Outputs, Program
from ml.storage.download import DownloadRequest, DownloadResult

# A batch with this many bytes of files is complete. On a CPU all threads get some of the large
# ones; a GPU gets enough of them at once.
_MAX_BATCH_BYTES = {"cpu": 4 * 2**20, "cuda": 16 * 2**20}

Size = tuple[int, int]


class Item(NamedTuple):
    """An image to score.

    Attributes:
        night: the night that it belongs to.
        image_id: its number in the tables, unique within the night.
        uri: where it lies.
        etag: its ETag as listed, without quotes.
        bytes: its size as listed.
    """

    night: date
    image_id: int
    uri: str
    etag: str
    bytes: int


class Prediction(NamedTuple):
    """The result of one version for one image.

    Attributes:
        item: the image.
        model: the model's name.
        version: the version's number.
        predicted_class: a class of the model.
        confidence: the probability of the class; None for an anomaly detector.
        score: the anomaly score in [0, 1]; None for a classifier.
        threshold: the version's threshold for `score`; None for a classifier.
        flagged: whether `score` has reached the threshold.
        novelty: how unlike the training images it is, in [0, 1]; None where the version does not
            measure it.
        review: whether `novelty` has reached the version's threshold for it; independent of
            `flagged`.
        pixels: uint8 (3, H, W) as the model saw them; None unless flagged.
        anomaly_map: float32 (h, w) in [0, 1], which may be coarser than the image; None unless
            flagged.
    """

    item: Item
    model: str
    version: int
    predicted_class: str
    confidence: float | None = None
    score: float | None = None
    threshold: float | None = None
    flagged: bool = False
    novelty: float | None = None
    review: bool = False
    pixels: np.ndarray | None = None
    anomaly_map: np.ndarray | None = None


class Rejection(NamedTuple):
    """An image for which one version has no result.

    Attributes:
        item: the image.
        model: the model's name.
        version: the version's number.
        reason: why.
        detail: more about the reason, for the reader.
    """

    item: Item
    model: str
    version: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The results of a batch: a prediction or a rejection per image and program."""

    predictions: list[Prediction] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of predictions and rejections."""
        return len(self.predictions) + len(self.rejections)


Fetch = Callable[[Iterable[DownloadRequest[Item]]], Iterator[DownloadResult[Item]]]
FetchedItem = tuple[Item, bytes | RejectedError]


def score(
    items: Iterable[Item],
    programs: Sequence[Program],
    fetch: Fetch,
    limits: Limits,
    batch_size: int | None = None,
) -> Iterator[BatchResult]:
    """Score images with one or more programs, all on the same device.

    Args:
        items: the images; consumed as the work proceeds.
        programs: the versions that score each image.
        fetch: downloads the images, as `ml.storage.download.download`. An error that it raises ends
            the scoring; the caller retries. An outage must not become a rejection of images.
        limits: the largest image that is decoded.
        batch_size: images per batch; None for what suits the device.

    Yields:
        The results of a batch. Images come in the order in which they were fetched.
    """
    if not programs:
        return
    device = programs[0].device
    threads = thread_count(device)
    batch_size = batch_size or min(program.batch_size for program in programs)
    fetched = _fetch_items(items, fetch, limits)
    batches = _batches(fetched, batch_size, _MAX_BATCH_BYTES[device])

    def score_batch(batch: list[FetchedItem]) -> BatchResult:
        return _score_batch(batch, programs, limits)

    prefetched = prefetch(batches, buffer_size=threads)
    try:
        yield from parallel_map(score_batch, prefetched, threads=threads, buffer_size=threads + 1)
    finally:
        prefetched.close()


def thread_count(device: Device) -> int:
    """Return the number of threads that score a batch each.

    There are more of them than cores, since each waits at times: for the GPU, or for Python's lock.
    """
    cores = usable_cores()
    return 2 * cores if device == "cpu" else cores + 2


def _fetch_items(items: Iterable[Item], fetch: Fetch, limits: Limits) -> Iterator[FetchedItem]:
    """Each image with its file's content, or with the reason why there is none."""
    oversized: list[Item] = []

    def requests() -> Iterator[DownloadRequest[Item]]:
        for item in items:
            if item.bytes > limits.max_bytes:
                oversized.append(item)
            else:
                yield DownloadRequest(item, item.uri, item.bytes, item.etag)

    for item, content, etag in fetch(requests()):
        if content is None:
            detail = "the object was there when the night was listed"
            yield item, RejectedError(Reason.GONE, detail)
        elif etag != item.etag:
            detail = f"ETag {etag} instead of {item.etag} as listed"
            yield item, RejectedError(Reason.CHANGED, detail)
        else:
            yield item, content
    for item in oversized:
        detail = f"{item.bytes} bytes; limit {limits.max_bytes}"
        yield item, RejectedError(Reason.TOO_MANY_BYTES, detail)


def _batches(
    fetched: Iterable[FetchedItem], batch_size: int, max_bytes: int
) -> Iterator[list[FetchedItem]]:
    """Batches of up to `batch_size` images; the first has half, so that no core waits long."""
    batch: list[FetchedItem] = []
    batch_bytes, target_size = 0, max(1, batch_size // 2)
    for item, content in fetched:
        batch.append((item, content))
        batch_bytes += len(content) if isinstance(content, bytes) else 0
        if len(batch) == target_size or batch_bytes >= max_bytes:
            yield batch
            batch, batch_bytes, target_size = [], 0, min(2 * target_size, batch_size)
    if batch:
        yield batch


def _score_batch(
    batch: Sequence[FetchedItem], programs: Sequence[Program], limits: Limits
) -> BatchResult:
    by_size = {program.info.input_size: program for program in programs}
    # Decoded to where the device reads it: once for all programs of a size.
    pixels = {size: program.empty_batch(len(batch)) for size, program in by_size.items()}
    decoded: list[Item] = []
    rejected: list[tuple[Item, RejectedError]] = []
    for item, content in batch:
        try:
            _decode(content, pixels, len(decoded), limits)
            decoded.append(item)
        except RejectedError as error:
            rejected.append((item, error))
    result = BatchResult()
    for program in programs:
        model, version = _model_version(program)
        result.rejections.extend(
            Rejection(item, model, version, error.reason, error.detail) for item, error in rejected
        )
        if decoded:
            _predict(decoded, pixels[program.info.input_size][: len(decoded)], program, result)
    return result


def _decode(
    content: bytes | RejectedError,
    pixels: dict[Size, np.ndarray],
    row: int,
    limits: Limits,
) -> None:
    """Decode an image into a row of the batch of each size."""
    if isinstance(content, RejectedError):
        raise content
    largest = max(size[0] for size in pixels), max(size[1] for size in pixels)
    image = decode(content, max_pixels=limits.max_pixels, target_size=largest)
    for size, batch in pixels.items():
        resize(image, size, out=batch[row])


def _predict(
    items: Sequence[Item], pixels: np.ndarray, program: Program, result: BatchResult
) -> None:
    """Run a program on a batch and add what it gives for each image to `result`."""
    outputs = program.predict(pixels, maps="flagged")
    if program.info.task == CLASSIFICATION:
        finite = np.isfinite(outputs.probabilities).all(axis=1)
        result.predictions.extend(_classify(items, outputs, program, finite))
    else:
        finite = np.isfinite(outputs.scores)
        if len(outputs.novelties):
            finite &= np.isfinite(outputs.novelties)
        result.predictions.extend(_detect(items, pixels, outputs, program, finite))
    if not finite.all():
        model, version = _model_version(program)
        detail = "the program's output is not a finite number"
        result.rejections.extend(
            Rejection(items[row], model, version, Reason.NOT_FINITE, detail)
            for row in np.flatnonzero(~finite).tolist()
        )


def _classify(
    items: Sequence[Item], outputs: Outputs, program: Program, finite: np.ndarray
) -> Iterator[Prediction]:
    model, version = _model_version(program)
    classes = program.info.classes
    best = outputs.probabilities.argmax(axis=1)
    confidences = outputs.probabilities[np.arange(len(best)), best]
    rows = zip(items, best.tolist(), confidences.tolist(), finite.tolist(), strict=True)
    for item, index, confidence, is_finite in rows:
        if is_finite:
            yield Prediction(item, model, version, classes[index], confidence)


def _detect(
    items: Sequence[Item],
    pixels: np.ndarray,
    outputs: Outputs,
    program: Program,
    finite: np.ndarray,
) -> Iterator[Prediction]:
    model, version = _model_version(program)
    threshold = program.info.threshold
    assert threshold is not None  # checked when the program was loaded
    flags = outputs.scores >= threshold
    novelties, reviews = _novelties(outputs, program.info.novelty_threshold)
    maps = dict(zip(outputs.map_rows.tolist(), outputs.anomaly_maps, strict=True))
    columns = (items, outputs.scores.tolist(), flags.tolist(), novelties, reviews, finite.tolist())
    for row, (item, value, flagged, novelty, review, is_finite) in enumerate(
        zip(*columns, strict=True)
    ):
        if not is_finite:
            continue
        if not flagged:
            yield Prediction(
                item, model, version, NORMAL, None, value, threshold, False, novelty, review
            )
            continue
        yield Prediction(
            item, model, version, ANOMALOUS, None, value, threshold, True, novelty, review,
            # Copies, so that one anomaly does not keep its whole batch in memory.
            pixels[row].copy(), maps[row].copy(),
        )  # fmt: skip


def _novelties(
    outputs: Outputs, threshold: float | None
) -> tuple[Sequence[float | None], Sequence[bool]]:
    """Each image's novelty, and whether it has reached the threshold."""
    if not len(outputs.novelties):
        return [None] * len(outputs), [False] * len(outputs)
    if threshold is None:
        return outputs.novelties.tolist(), [False] * len(outputs)
    return outputs.novelties.tolist(), (outputs.novelties >= threshold).tolist()


def _model_version(program: Program) -> tuple[str, int]:
    return program.info.model, program.info.version or 0
