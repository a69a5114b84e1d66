"""A snapshot's images as one array on disk: fetched and decoded once, used for every epoch."""

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ml.errors import DataError
from ml.images import Rejected, decode, resize
from ml.parallel import map_ahead
from ml.settings import state_folder
from ml.snapshot import Row
from ml.store import object_store

log = logging.getLogger(__name__)

KEPT = 6
_THREADS = 16
_MAX_PIXELS = 64_000_000
_PROGRESS_EVERY_S = 10.0


def load(rows: Sequence[Row], size: tuple[int, int], key: str) -> np.ndarray:
    """The images of `rows`, in their order, at `size` (height, width) in pixels.

    Returns
    -------
    uint8 (N, 3, H, W), memory-mapped from a cache file named by `key` and the size, which never
    changes; memory holds what is in use, whatever N.

    Raises
    ------
    DataError: an image is gone, was changed since the snapshot, or cannot be decoded.
    """
    folder = state_folder() / "cache" / "pixels"
    path = folder / f"{key}-{size[0]}x{size[1]}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, rows, size)
        _forget_oldest(folder)
    path.touch()
    # Copy on write: torch wants arrays that may be written to.
    return np.load(path, mmap_mode="c")


def _write(path: Path, rows: Sequence[Row], size: tuple[int, int]) -> None:
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix="partial-"))
    try:
        array = np.lib.format.open_memmap(
            scratch / "pixels.npy", mode="w+", dtype=np.uint8, shape=(len(rows), 3, *size)
        )
        reported = time.monotonic()
        images = map_ahead(lambda row: _pixels(row, size), rows, threads=_THREADS, ahead=256)
        for index, pixels in enumerate(images):
            array[index] = pixels
            if time.monotonic() - reported > _PROGRESS_EVERY_S:
                reported = time.monotonic()
                log.info("Read %s of %s images", index + 1, len(rows))
        array.flush()
        (scratch / "pixels.npy").replace(path)
    finally:
        shutil.rmtree(scratch)


def _pixels(row: Row, size: tuple[int, int]) -> np.ndarray:
    try:
        content, etag = object_store().get(row.uri)
        if etag != row.etag:
            raise DataError(f"{row.uri} was changed since the snapshot.", "Take a new one.")
        return resize(decode(content, max_pixels=_MAX_PIXELS, at_least=size), size)
    except FileNotFoundError:
        raise DataError(f"{row.uri} is gone since the snapshot.", "Take a new one.") from None
    except Rejected as rejected:
        raise DataError(
            f"{row.uri} cannot be trained from: {rejected}.", "Remove it from the data set."
        ) from None


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT]:
        path.unlink(missing_ok=True)
