"""Labelled data sets in S3: `STORAGE/datasets/NAME/SPLIT/CLASS/FILE`."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ml.config.schema import MAX_PIXELS
from ml.data.archive import Entry, labelled_images
from ml.data.samples import is_synthetic
from ml.errors import DataError
from ml.images.decoding import decode
from ml.images.rejection import RejectedError
from ml.parallel import parallel_map
from ml.storage.object_store import object_store
from ml.storage.upload import OnProgress, upload

log = logging.getLogger(__name__)

LAYOUT = "SPLIT/CLASS/FILE, for instance train/normal/0001.jpg"
_THREADS = 16
_LOG_INTERVAL_S = 10.0


class ListedImage(Protocol):
    """An image as it was when it was listed."""

    @property
    def uri(self) -> str:
        """The URI of its object."""

    @property
    def etag(self) -> str:
        """The ETag that the object had."""


def class_folders(storage: str, name: str) -> list[str]:
    """List the URIs of a data set's folders SPLIT/CLASS.

    It lists folder by folder, as the local S3 server reads everything below a prefix again for each
    page of a listing.
    """
    store = object_store()
    return [
        label
        for split in store.list_folders(folder(storage, name))
        for label in store.list_folders(split)
    ]


@dataclass(frozen=True)
class ImportResult:
    """The numbers of images of an import.

    Attributes:
        images: in the source.
        uploaded: written to S3.
        skipped: already in S3.
        removed: removed from S3.
        left_out: in the source, but not laid out SPLIT/CLASS/FILE.
        classes: SPLIT/CLASS → images in the source.
    """

    images: int
    uploaded: int
    skipped: int
    removed: int
    left_out: int
    classes: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A data set in S3.

    Attributes:
        name: of the data set.
        images: their number.
        bytes: their size.
        classes: SPLIT/CLASS → number of images.
    """

    name: str
    images: int
    bytes: int
    classes: dict[str, int]


def folder(storage: str, name: str) -> str:
    """The URI of a data set's folder."""
    return f"{storage}/datasets/{name}"


def import_(
    path: Path,
    name: str,
    *,
    storage: str,
    replace: bool = False,
    on_progress: OnProgress = lambda done: None,
) -> ImportResult:
    """Copy images into S3. An import that was interrupted can be repeated.

    Args:
        path: a folder or tar laid out SPLIT/CLASS/FILE.
        name: the data set.
        storage: the URI below which all data sets are.
        replace: also remove the data set's objects that the source does not have.
        on_progress: is called with the number of images done so far.

    Raises:
        DataError: there is no image with this layout, or the source is damaged or hostile
            (`ml.data.archive`).
    """
    target = folder(storage, name)
    classes: Counter[str] = Counter()
    left_out = 0

    def count_left_out(_: Entry) -> None:
        nonlocal left_out
        left_out += 1

    def objects() -> Iterator[tuple[str, bytes]]:
        for image in labelled_images(path, count_left_out):
            classes[f"{image.split}/{image.label}"] += 1
            yield f"{target}/{image.split}/{image.label}/{image.name}", image.content

    folders = class_folders(storage, name)
    result = upload(objects(), folders, on_progress)
    images = len(result.uris)
    if not images:
        raise DataError(f"{path} holds no image.", f"Expected files laid out {LAYOUT}.")
    removed = _remove_others(folders, result.uris) if replace else 0
    return ImportResult(
        images, result.written, images - result.written, removed, left_out, dict(classes)
    )


def _remove_others(folders: list[str], keep: frozenset[str]) -> int:
    store = object_store()
    others = [
        image.uri
        for folder in folders
        for page in store.list_pages(folder)
        for image in page
        if image.uri not in keep
    ]
    store.delete(others)
    return len(others)


def summaries(storage: str) -> list[Summary]:
    """Summarize the data sets that are in S3, in the order of their names."""
    return [
        _summary(storage, uri.rsplit("/", 1)[-1])
        for uri in object_store().list_folders(f"{storage}/datasets")
    ]


def _summary(storage: str, name: str) -> Summary:
    classes: Counter[str] = Counter()
    size = 0
    for uri in class_folders(storage, name):
        for page in object_store().list_pages(uri):
            classes["/".join(uri.split("/")[-2:])] += len(page)
            size += sum(image.size for image in page)
    return Summary(name, classes.total(), size, dict(classes))


def holds_real_images(storage: str, name: str) -> bool:
    """Whether a data set in S3 has an image that is not one of the built-in samples."""
    return any(
        not is_synthetic(image.uri)
        for uri in class_folders(storage, name)
        for page in object_store().list_pages(uri)
        for image in page
    )


def read(
    images: Sequence[ListedImage],
    target_size: tuple[int, int],
    convert: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Fetch, decode and convert images on several threads; logs the progress.

    Args:
        images: their URIs and ETags.
        target_size: height and width in pixels that suffice, see `ml.images.decoding.decode`.
        convert: takes the pixels, uint8 (height, width, 3), RGB.

    Yields:
        What `convert` returns, in the order of `images`.

    Raises:
        DataError: an image is gone, has changed since it was listed, or cannot be decoded.
    """

    def load(image: ListedImage) -> np.ndarray:
        return convert(_fetch_pixels(image, target_size))

    last_log = time.monotonic()
    for number, result in enumerate(
        parallel_map(load, images, threads=_THREADS, buffer_size=256), start=1
    ):
        yield result
        if time.monotonic() - last_log > _LOG_INTERVAL_S:
            last_log = time.monotonic()
            log.info("%s of %s images are read", f"{number:,}", f"{len(images):,}")


def _fetch_pixels(image: ListedImage, target_size: tuple[int, int]) -> np.ndarray:
    try:
        content, etag = object_store().get(image.uri)
        if etag != image.etag:
            raise DataError(f"{image.uri} was changed since the snapshot.", "Take a new one.")
        return decode(content, max_pixels=MAX_PIXELS, target_size=target_size)
    except FileNotFoundError:
        raise DataError(f"{image.uri} is gone since the snapshot.", "Take a new one.") from None
    except RejectedError as error:
        raise DataError(
            f"{image.uri} cannot be trained from: {error}.", "Remove it from the data set."
        ) from None
