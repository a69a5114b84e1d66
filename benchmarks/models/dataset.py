"""The images of a folder or tar, divided as a snapshot divides a data set; no service is needed."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml.config.schema import Model
from ml.data import scenes, snapshot
from ml.data.archive import LabelledImage, labelled_images
from ml.data.snapshot import Row, Snapshot
from ml.errors import DataError
from ml.images.decoding import decode
from ml.images.rejection import RejectedError
from ml.images.resizing import resize
from ml.parallel import parallel_map
from ml.storage.object_store import ObjectInfo

if TYPE_CHECKING:
    from ml.training.data import Splits

_MAX_PIXELS = 64_000_000
_THREADS = 2
Listed = tuple[ObjectInfo, str, str]


def load(path: Path, model: Model, most: int | None = None) -> "Splits":
    """The parts that the model trains on, is held out from and is tested on.

    Args:
        path: a folder or tar laid out SPLIT/CLASS/FILE.
        model: its data are divided as this model's snapshot would divide them.
        most: the largest number of images of each SPLIT/CLASS, the first ones; None: all.

    Raises:
        DataError: an image cannot be decoded, or a part that is needed has none.
    """
    from ml.training import data

    listed: list[Listed] = []
    pixels: dict[str, np.ndarray] = {}
    thumbnails: dict[str, np.ndarray] = {}

    def read(image: LabelledImage) -> tuple[Listed, np.ndarray, np.ndarray]:
        small = scenes.thumbnail(_decoded(image, (scenes.HEIGHT, scenes.WIDTH)))
        return _listed(image), _pixels(image, model.input_size), small

    images = parallel_map(
        read, _first(labelled_images(path), most), threads=_THREADS, buffer_size=256
    )
    for found, image, small in images:
        listed.append(found)
        pixels[found[0].uri], thumbnails[found[0].uri] = image, small

    def of_rows(rows: Sequence[Row], size: tuple[int, int], key: str) -> np.ndarray:
        return np.ascontiguousarray(np.stack([pixels[row.uri] for row in rows]))

    parts = data.load(_divided(path, listed, thumbnails, model), model, load_pixels=of_rows)
    if len(set(parts.test.labels)) < 2:
        raise DataError(f"{path} holds no images test/CLASS of two kinds, which are measured on.")
    return parts


def _divided(
    path: Path, listed: Sequence[Listed], thumbnails: Mapping[str, np.ndarray], model: Model
) -> Snapshot:
    rows = snapshot.assign(listed, model.holdout_share)
    if model.holdout_by == "scene":
        found = snapshot.find_scenes(rows, lambda chosen: [thumbnails[row.uri] for row in chosen])
        rows = snapshot.assign(listed, model.holdout_share, found)
    return Snapshot(str(path), path.stem, tuple(rows))


def _first(images: Iterator[LabelledImage], most: int | None) -> Iterator[LabelledImage]:
    seen: Counter[tuple[str, str]] = Counter()
    for image in images:
        seen[image.split, image.label] += 1
        if most is None or seen[image.split, image.label] <= most:
            yield image


def _listed(image: LabelledImage) -> Listed:
    """As S3 would list it: its ETag is the MD5 of its content."""
    etag = hashlib.md5(image.content, usedforsecurity=False).hexdigest()
    uri = f"{image.split}/{image.label}/{image.name}"
    found = ObjectInfo(uri, etag, len(image.content), datetime.fromtimestamp(0, UTC))
    return found, image.split, image.label


def _pixels(image: LabelledImage, size: tuple[int, int]) -> np.ndarray:
    return resize(_decoded(image, size), size)


def _decoded(image: LabelledImage, size: tuple[int, int]) -> np.ndarray:
    try:
        return decode(image.content, max_pixels=_MAX_PIXELS, target_size=size)
    except RejectedError as rejected:
        name = f"{image.split}/{image.label}/{image.name}"
        raise DataError(f"{name} cannot be decoded: {rejected}.") from None
