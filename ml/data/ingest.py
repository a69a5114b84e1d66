"""Put images where a stream finds them: in `PREFIX/dt=YYYY-MM-DD/`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from ml.config.schema import Stream
from ml.data import samples
from ml.data.archive import entries, labelled_images
from ml.errors import DataError
from ml.storage import nights
from ml.storage.object_store import object_store
from ml.storage.upload import OnProgress, upload


@dataclass(frozen=True)
class IngestResult:
    """The numbers of images of an ingestion.

    Attributes:
        images: in the source.
        uploaded: written to S3.
        skipped: already in S3.
    """

    images: int
    uploaded: int
    skipped: int


def ingest(
    path: Path,
    stream: Stream,
    night: date,
    *,
    split: str | None = None,
    on_progress: OnProgress = lambda done: None,
) -> IngestResult:
    """Copy images into a night. An ingestion that was interrupted can be repeated.

    The suffix alone decides which files are images: scoring will reject broken ones.

    Args:
        path: a folder or tar.
        stream: the stream that the night belongs to.
        night: the date.
        split: copy only this split of a source laid out SPLIT/CLASS/FILE, under names that do not
            tell the label. None: copy every image, under its relative path.
        on_progress: is called with the number of images done so far.

    Raises:
        DataError: the source has no image (of the split), or it is damaged or hostile
            (`ml.data.archive`).
    """
    target = nights.folder(stream.prefix, night)
    images = _all_images(path) if split is None else _split_images(path, split)
    result = upload(
        ((f"{target}/{name}", content) for name, content in images), [target], on_progress
    )
    if not result.uris:
        subject = "image" if split is None else f"image laid out {split}/CLASS/FILE"
        raise DataError(f"{path} holds no {subject}.")
    return IngestResult(len(result.uris), result.written, len(result.uris) - result.written)


def remove_samples(stream: Stream, night: date) -> int:
    """Delete the built-in samples from a night; returns their number."""
    folder = nights.folder(stream.prefix, night)
    uris = [
        image.uri
        for page in object_store().list_pages(folder)
        for image in page
        if samples.is_synthetic(image.uri)
    ]
    object_store().delete(uris)
    return len(uris)


def _all_images(path: Path) -> Iterator[tuple[str, bytes]]:
    for entry in entries(path):
        yield entry.path.as_posix(), entry.content


def _split_images(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    for image in labelled_images(path):
        if image.split == split:
            yield _anonymous_name(image.split, image.label, image.name), image.content


def _anonymous_name(split: str, label: str, name: str) -> str:
    """A stable and unique name that does not tell the label; samples keep their prefix."""
    digest = hashlib.sha256(f"{split}/{label}/{name}".encode()).hexdigest()[:16]
    prefix = samples.PREFIX if samples.is_synthetic(name) else ""
    return f"{prefix}{digest}{PurePosixPath(name).suffix.lower()}"
