"""An immutable list of a data set's images: what a training run can be repeated from.

A snapshot is a Parquet file in S3 named by the hash of its content. It also says what each image
is for (`part`), so that nothing is decided later.
"""

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ml import dataset
from ml.errors import DataError
from ml.images import SUFFIXES
from ml.samples import is_synthetic
from ml.store import ObjectInfo, object_store

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
FIT, HOLDOUT, THRESHOLD, REPORT, EXCLUDED = "fit", "holdout", "threshold", "report", "excluded"


class Row(NamedTuple):
    """An image of a snapshot.

    `group` is the same for byte-identical images. `part`: `fit` trains; `holdout` (of the split
    train) and `threshold` (of calibration) are held out for the gate and the threshold; `report`
    is only reported; `excluded` has a copy in a split that is reported.
    """

    uri: str
    etag: str
    size: int
    split: str
    label: str
    group: str
    part: str


@dataclass(frozen=True)
class Snapshot:
    """A snapshot as loaded: its rows are in the order of their URIs."""

    uri: str
    dataset: str
    rows: tuple[Row, ...]

    @property
    def hash(self) -> str:
        return self.uri.rsplit("/", 1)[-1].removesuffix(".parquet")

    @property
    def synthetic(self) -> bool:
        """Whether any image was drawn by Nightscore's own generator."""
        return any(is_synthetic(row.uri) for row in self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of the split train, sorted."""
        return tuple(sorted({row.label for row in self.rows if row.split == TRAIN}))

    def select(
        self, *, split: str | None = None, part: str | None = None, label: str | None = None
    ) -> list[Row]:
        """The rows of a split, part and label; None is any."""
        return [
            row
            for row in self.rows
            if split in (None, row.split)
            and part in (None, row.part)
            and label in (None, row.label)
        ]


def take(name: str, storage: str, *, holdout_share: float) -> str:
    """List a data set and store the list; returns its URI, the same for the same content.

    Raises
    ------
    DataError: the data set has no images in the split train.
    """
    listed = list(_listed(name, storage))
    if not any(split == TRAIN for _, split, _ in listed):
        raise DataError(
            f"Data set {name!r} has no training images in {dataset.folder(storage, name)}/train.",
            f"Bring them with `nightscore dataset import PATH --name {name}`.",
        )
    rows = assign(listed, holdout_share)
    content = "\n".join("\t".join(map(str, row)) for row in rows)
    digest = hashlib.sha256(content.encode()).hexdigest()[:32]
    uri = f"{storage}/snapshots/{name}/{digest}.parquet"
    if not object_store().exists(uri):
        object_store().put(uri, _to_parquet(rows))
    return uri


def load(uri: str) -> Snapshot:
    """Read a snapshot; raises DataError when it is not there."""
    import pyarrow.parquet as parquet

    try:
        content, _ = object_store().get(uri)
    except FileNotFoundError:
        raise DataError(f"There is no snapshot {uri}.") from None
    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
    rows = tuple(Row(*values) for values in zip(*(columns[f] for f in Row._fields), strict=True))
    return Snapshot(uri, uri.split("/")[-2], rows)


def assign(listed: Sequence[tuple[ObjectInfo, str, str]], holdout_share: float) -> list[Row]:
    """Group (object, split, label) by content and decide what each image is for.

    A group goes as a whole, and where it goes depends on its content alone: an image that was
    held out once is held out in every later snapshot, and its copies with it.
    """
    groups = _groups(listed)
    splits: dict[str, set[str]] = defaultdict(set)
    for (_, split, _), group in zip(listed, groups, strict=True):
        splits[group].add(split)
    rows = [
        Row(found.uri, found.etag, found.size, split, label, group,
            _part(split, group, splits[group], holdout_share))
        for (found, split, label), group in zip(listed, groups, strict=True)
    ]  # fmt: skip
    return sorted(rows)


def _part(split: str, group: str, splits: set[str], holdout_share: float) -> str:
    place = int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12
    if split not in (TRAIN, CALIBRATION):
        return REPORT
    if splits - {TRAIN, CALIBRATION}:
        return EXCLUDED
    if split == TRAIN:
        # An image in both train and calibration follows the calibration's division.
        if CALIBRATION in splits:
            return FIT if place < 0.5 else HOLDOUT
        return HOLDOUT if place >= 1 - holdout_share else FIT
    return FIT if place < 0.5 else THRESHOLD


def _groups(listed: Iterable[tuple[ObjectInfo, str, str]]) -> list[str]:
    return [f"{_content_id(found)}-{found.size}" for found, _, _ in listed]


def _content_id(found: ObjectInfo) -> str:
    """The ETag where it is the MD5 of the content, else a hash of the bytes.

    An object that was uploaded in parts has an ETag with a dash, which depends on the parts.
    """
    if len(found.etag) == 32 and "-" not in found.etag:
        return found.etag
    content, _ = object_store().get(found.uri)
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _listed(name: str, storage: str) -> Iterable[tuple[ObjectInfo, str, str]]:
    for folder in dataset.class_folders(storage, name):
        split, label = folder.split("/")[-2:]
        for page in object_store().pages(folder):
            for found in page:
                # Deeper folders are not part of the layout.
                if found.uri.rsplit("/", 1)[0] == folder and found.uri.lower().endswith(SUFFIXES):
                    yield found, split, label


def _to_parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {field: [getattr(row, field) for row in rows] for field in Row._fields}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
