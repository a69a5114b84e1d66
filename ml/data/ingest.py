"""Put images where a stream looks for them: `PREFIX/dt=YYYY-MM-DD/`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath

from ml.config.schema import Stream
from ml.data import samples
from ml.data.archive import entries, labelled
from ml.errors import DataError
from ml.storage import nights
from ml.storage.object_store import object_store
from ml.storage.upload import OnProgress, upload


@dataclass(frozen=True)
class IngestResult:
    """Numbers of images: in the source, written, and there already."""

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
    """Copy the images of a folder or tar into a night; one that broke off can be repeated.

    Files are taken by suffix, whatever they hold: a broken one is for the scoring to reject.

    Args:
        split: take only this split of a source laid out SPLIT/CLASS/FILE, under names that do not
            give away the label. None: every image under its relative path.

    Raises:
        DataError: the source holds no image (of the split), is damaged or hostile
            (`ml.data.archive`).
    """
    target = nights.folder(stream.prefix, night)
    images = _relative(path) if split is None else _unlabelled(path, split)
    done = upload(
        ((f"{target}/{name}", content) for name, content in images), [target], on_progress
    )
    if not done.uris:
        what = "image" if split is None else f"image laid out {split}/CLASS/FILE"
        raise DataError(f"{path} holds no {what}.")
    return IngestResult(len(done.uris), done.written, len(done.uris) - done.written)


def remove_samples(stream: Stream, night: date) -> int:
    """Delete the built-in samples from a night; returns how many there were."""
    folder = nights.folder(stream.prefix, night)
    found = [
        image.uri
        for page in object_store().list_pages(folder)
        for image in page
        if samples.is_synthetic(image.uri)
    ]
    object_store().delete(found)
    return len(found)


def _relative(path: Path) -> Iterator[tuple[str, bytes]]:
    for entry in entries(path):
        yield entry.path.as_posix(), entry.content


def _unlabelled(path: Path, split: str) -> Iterator[tuple[str, bytes]]:
    for image in labelled(path):
        if image.split == split:
            yield unlabelled_name(image.split, image.label, image.name), image.content


def unlabelled_name(split: str, label: str, name: str) -> str:
    """A name that is stable and unique and says nothing of the label; synthetic images stay
    recognisable as such.
    """
    digest = hashlib.sha256(f"{split}/{label}/{name}".encode()).hexdigest()[:16]
    mark = samples.PREFIX if samples.is_synthetic(name) else ""
    return f"{mark}{digest}{PurePosixPath(name).suffix.lower()}"
