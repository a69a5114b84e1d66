"""A snapshot's images as one array on disk: fetched and decoded once, used for every epoch."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ml.data import dataset
from ml.data.snapshot import Row
from ml.files import atomic_path
from ml.images.resizing import resize
from ml.settings import state_folder

KEPT = 6


def load(rows: Sequence[Row], size: tuple[int, int], key: str) -> np.ndarray:
    """The images of `rows`, in their order, at `size` (height, width) in pixels.

    Returns:
        uint8 (N, 3, H, W), memory-mapped from a cache file named by `key` and the size, which never
        changes; memory holds what is in use, whatever N.

    Raises:
        DataError: an image is gone, was changed since the snapshot, or cannot be decoded.
    """
    folder = state_folder() / "cache" / "pixels"
    path = folder / f"{key}-{size[0]}x{size[1]}.npy"
    if not path.exists():
        _write(path, rows, size)
        _forget_oldest(folder)
    path.touch()
    # Copy on write: torch wants arrays that may be written to.
    return np.load(path, mmap_mode="c")


def _write(path: Path, rows: Sequence[Row], size: tuple[int, int]) -> None:
    with atomic_path(path) as partial_path:
        array = np.lib.format.open_memmap(
            partial_path, mode="w+", dtype=np.uint8, shape=(len(rows), 3, *size)
        )
        for index, pixels in enumerate(dataset.read(rows, size, partial(resize, size=size))):
            array[index] = pixels
        array.flush()


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT]:
        path.unlink(missing_ok=True)
