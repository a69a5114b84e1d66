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
from ml.data.archive import Entry, labelled
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
_PROGRESS_EVERY_S = 10.0


class Listed(Protocol):
    """An image as it was listed: its object and the ETag that it had."""

    @property
    def uri(self) -> str: ...
    @property
    def etag(self) -> str: ...


def class_folders(storage: str, name: str) -> list[str]:
    """The URIs of a data set's folders SPLIT/CLASS.

    Listing folder by folder is what keeps the local S3 server quick: for each page of a listing it
    reads everything below the prefix again.
    """
    store = object_store()
    return [
        label
        for split in store.list_folders(folder(storage, name))
        for label in store.list_folders(split)
    ]


@dataclass(frozen=True)
class ImportResult:
    """Numbers of images: in the source, written, there already, and removed; `left_out` are those
    of the source that are not laid out SPLIT/CLASS/FILE; `classes` counts as SPLIT/CLASS.
    """

    images: int
    uploaded: int
    skipped: int
    removed: int
    left_out: int
    classes: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A data set in S3: its images by SPLIT/CLASS and their bytes."""

    name: str
    images: int
    bytes: int
    classes: dict[str, int]


def folder(storage: str, name: str) -> str:
    """The URI below which a data set lies."""
    return f"{storage}/datasets/{name}"


def import_(
    path: Path,
    name: str,
    *,
    storage: str,
    replace: bool = False,
    on_progress: OnProgress = lambda done: None,
) -> ImportResult:
    """Copy a folder or tar laid out SPLIT/CLASS/FILE into S3; one that broke off can be repeated.

    Args:
        replace: also remove the data set's objects that the source does not have.

    Raises:
        DataError: there is no image so laid out, or the source is damaged or hostile
            (`ml.data.archive`).
    """
    target = folder(storage, name)
    classes: Counter[str] = Counter()
    others = 0

    def count_other(_: Entry) -> None:
        nonlocal others
        others += 1

    def objects() -> Iterator[tuple[str, bytes]]:
        for image in labelled(path, count_other):
            classes[f"{image.split}/{image.label}"] += 1
            yield f"{target}/{image.split}/{image.label}/{image.name}", image.content

    folders = class_folders(storage, name)
    done = upload(objects(), folders, on_progress)
    if not done.uris:
        raise DataError(f"{path} holds no image.", f"Expected files laid out {LAYOUT}.")
    removed = _remove_others(folders, done.uris) if replace else 0
    skipped = len(done.uris) - done.written
    return ImportResult(len(done.uris), done.written, skipped, removed, others, dict(classes))


def _remove_others(folders: list[str], keep: frozenset[str]) -> int:
    store = object_store()
    others = [
        found.uri
        for folder in folders
        for page in store.list_pages(folder)
        for found in page
        if found.uri not in keep
    ]
    store.delete(others)
    return len(others)


def summaries(storage: str) -> list[Summary]:
    """The data sets that are in S3, by name."""
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
            size += sum(found.size for found in page)
    return Summary(name, classes.total(), size, dict(classes))


def holds_real_images(storage: str, name: str) -> bool:
    """Whether a data set in S3 has any image that is not one of the built-in samples."""
    return any(
        not is_synthetic(found.uri)
        for uri in class_folders(storage, name)
        for page in object_store().list_pages(uri)
        for found in page
    )


def read(
    images: Sequence[Listed],
    target_size: tuple[int, int],
    convert: Callable[[np.ndarray], np.ndarray],
) -> Iterator[np.ndarray]:
    """Fetch, decode and convert images on several threads, in their order; logs the progress.

    Args:
        target_size: (height, width) in pixels that suffices, see `ml.images.decoding.decode`.
        convert: takes uint8 (height, width, 3), RGB.

    Raises:
        DataError: an image is gone, was changed since it was listed, or cannot be decoded.
    """

    def one(image: Listed) -> np.ndarray:
        return convert(_pixels(image, target_size))

    reported = time.monotonic()
    for number, done in enumerate(
        parallel_map(one, images, threads=_THREADS, buffer_size=256), start=1
    ):
        yield done
        if time.monotonic() - reported > _PROGRESS_EVERY_S:
            reported = time.monotonic()
            log.info("%s of %s images are read", f"{number:,}", f"{len(images):,}")


def _pixels(image: Listed, target_size: tuple[int, int]) -> np.ndarray:
    try:
        content, etag = object_store().get(image.uri)
        if etag != image.etag:
            raise DataError(f"{image.uri} was changed since the snapshot.", "Take a new one.")
        return decode(content, max_pixels=MAX_PIXELS, target_size=target_size)
    except FileNotFoundError:
        raise DataError(f"{image.uri} is gone since the snapshot.", "Take a new one.") from None
    except RejectedError as rejected:
        raise DataError(
            f"{image.uri} cannot be trained from: {rejected}.", "Remove it from the data set."
        ) from None
