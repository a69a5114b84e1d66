"""A snapshot's images as one array on disk: fetched and decoded once, used in every epoch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ml.data import dataset
from ml.data.snapshot import Row
from ml.files import atomic_path
from ml.images.resizing import resize
from ml.settings import state_folder

MAX_CACHED_FILES = 6


def load(rows: Sequence[Row], size: tuple[int, int], key: str) -> np.ndarray:
    """Load images from the cache, which is filled from S3 when they are not there.

    Args:
        rows: the images.
        size: height and width in pixels.
        key: names the cache file, together with the size; it must name exactly these images.

    Returns:
        uint8 (N, 3, H, W), in the order of `rows`. It is memory-mapped: only what is used takes
        memory. Writing to it does not change the file.

    Raises:
        DataError: an image is gone, has changed since the snapshot, or cannot be decoded.
    """
    folder = state_folder() / "cache" / "pixels"
    path = folder / f"{key}-{size[0]}x{size[1]}.npy"
    if not path.exists():
        _write(path, rows, size)
        _evict_oldest(folder)
    path.touch()
    # Copy on write, as torch wants arrays that can be written to.
    images: np.ndarray = np.load(path, mmap_mode="c")
    return images


def _write(path: Path, rows: Sequence[Row], size: tuple[int, int]) -> None:
    with atomic_path(path) as partial_path:
        array = np.lib.format.open_memmap(
            partial_path, mode="w+", dtype=np.uint8, shape=(len(rows), 3, *size)
        )
        for index, image in enumerate(dataset.read(rows, size, partial(resize, size=size))):
            array[index] = image
        array.flush()


def _evict_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MAX_CACHED_FILES]:
        path.unlink(missing_ok=True)
