"""An immutable list of a data set's images: what a training run can be repeated from.

A snapshot is a Parquet file in S3 named by a hash of what it lists and how it is divided. It also
says what each image is for (`part`), so that nothing is decided later.
"""

import hashlib
import io
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ml.data import dataset, scenes
from ml.data.samples import is_synthetic
from ml.errors import DataError
from ml.images.formats import SUFFIXES
from ml.storage.object_store import ObjectInfo, content_hash, object_store

log = logging.getLogger(__name__)

TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
FIT, HOLDOUT, THRESHOLD, REPORT, EXCLUDED = "fit", "holdout", "threshold", "report", "excluded"

HoldoutBy = Literal["image", "scene"]
Listing = Sequence[tuple[ObjectInfo, str, str]]


class Row(NamedTuple):
    """An image of a snapshot.

    `group` is the same for byte-identical images. `part`: `fit` trains; `holdout` (of the split
    train) and `threshold` (of calibration) are held out for the gate and the threshold; `report`
    is only reported; `excluded` has a copy in a split that is reported. `scene` is the same for
    images of one scene of a split (`ml.data.scenes`), where images are held out by scene; else it
    is the group.
    """

    uri: str
    etag: str
    size: int
    split: str
    label: str
    group: str
    part: str
    scene: str


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


def take(name: str, storage: str, *, holdout_share: float, holdout_by: HoldoutBy = "image") -> str:
    """List a data set and store the list; returns its URI, the same for the same content.

    To hold out scenes the images of train and calibration are read, unless the same images were
    divided before.

    Raises:
        DataError: the data set has no images in the split train; to hold out scenes, one of its
            images cannot be decoded.
    """
    listed = list(_listed(name, storage))
    if not any(split == TRAIN for _, split, _ in listed):
        raise DataError(
            f"Data set {name!r} has no training images in {dataset.folder(storage, name)}/train.",
            f"Bring them with `nightscore dataset import PATH --name {name}`.",
        )
    rows = assign(listed, holdout_share)
    digest = _digest(rows, "" if holdout_by == "image" else f"scene {scenes.LIMIT} {holdout_share}")
    uri = f"{storage}/snapshots/{name}/{digest}.parquet"
    if not object_store().exists(uri):
        if holdout_by == "scene":
            rows = assign(listed, holdout_share, find_scenes(rows))
        object_store().put(uri, _to_parquet(rows))
    return uri


def _digest(rows: Sequence[Row], division: str) -> str:
    """Of the rows as divided by image, without `scene`: what is read from the images follows from
    their ETags and from how they are divided.
    """
    content = ["\t".join(map(str, row[:-1])) for row in rows]
    if division:
        content.append(division)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]


def load(uri: str) -> Snapshot:
    """Read a snapshot; raises DataError when it is not there."""
    import pyarrow.parquet as parquet

    try:
        content, _ = object_store().get(uri)
    except FileNotFoundError:
        raise DataError(f"There is no snapshot {uri}.") from None
    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
    columns.setdefault("scene", columns["group"])  # of a version before scenes
    rows = tuple(Row(*values) for values in zip(*(columns[f] for f in Row._fields), strict=True))
    return Snapshot(uri, uri.split("/")[-2], rows)


def assign(
    listed: Listing,
    holdout_share: float,
    scenes_of: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Row]:
    """Group (object, split, label) by content and decide what each image is for.

    A group goes as a whole. By image, where it goes depends on its content alone: an image that was
    held out once is held out in every later snapshot, and its copies with it. By scene its whole
    scene goes with it (`ml.data.scenes.hold_out`); new images may join scenes, and then more moves.

    Args:
        scenes_of: split → group → scene, for train and calibration; None divides by image.
    """
    groups = _groups(listed)
    splits: dict[str, set[str]] = defaultdict(set)
    for (_, split, _), group in zip(listed, groups, strict=True):
        splits[group].add(split)
    scenes_of = scenes_of or {}
    labels = {
        split: {
            (group, label)
            for (_, of, label), group in zip(listed, groups, strict=True)
            if of == split and _divides(split, splits[group])
        }
        for split in (TRAIN, CALIBRATION)
    }
    held = _held_out(TRAIN, labels[TRAIN], holdout_share, scenes_of.get(TRAIN))
    # Kinds of anomalies are often one scene each, and nothing is lost when one only measures.
    anomalies = {(group, "") for group, _ in labels[CALIBRATION]}
    held |= _held_out(CALIBRATION, anomalies, 0.5, scenes_of.get(CALIBRATION))
    rows = [
        Row(found.uri, found.etag, found.size, split, label, group,
            _part(split, splits[group], group in held),
            scenes_of.get(split, {}).get(group, group))
        for (found, split, label), group in zip(listed, groups, strict=True)
    ]  # fmt: skip
    return sorted(rows)


def _divides(split: str, splits: set[str]) -> bool:
    """Whether the division of `split` decides about an image that is in `splits`."""
    # An image in both train and calibration follows the calibration's division.
    return not splits - {TRAIN, CALIBRATION} and (split == CALIBRATION or splits == {TRAIN})


def _held_out(
    split: str, labels: set[tuple[str, str]], share: float, scene_of: Mapping[str, str] | None
) -> set[str]:
    """Which of the images (group, label) of a split are held out."""
    images = {group for group, _ in labels}
    if scene_of is not None and images:
        held = scenes.hold_out({group: scene_of[group] for group in images}, share, labels)
        if held:
            log.info(
                "%s: %s of %s images are held out, in %s of %s scenes", split, len(held),
                len(images), len({scene_of[group] for group in held}),
                len({scene_of[group] for group in images}),
            )  # fmt: skip
            return held
        log.warning(
            "%s: too few scenes to hold one out; single images are held out, and what is measured "
            "on them is better than what will be seen at another place",
            split,
        )
    return {group for group in images if _place(group) >= 1 - share}


def _place(group: str) -> float:
    return int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12


def _part(split: str, splits: set[str], held: bool) -> str:
    if split not in (TRAIN, CALIBRATION):
        return REPORT
    if splits - {TRAIN, CALIBRATION}:
        return EXCLUDED
    if not held:
        return FIT
    return HOLDOUT if split == TRAIN else THRESHOLD


def _thumbnails(rows: Sequence[Row]) -> Iterable[np.ndarray]:
    return dataset.read(rows, (scenes.HEIGHT, scenes.WIDTH), scenes.thumbnail)


def find_scenes(
    rows: Sequence[Row],
    thumbnails_of: Callable[[Sequence[Row]], Iterable[np.ndarray]] = _thumbnails,
) -> dict[str, dict[str, str]]:
    """Split → group → scene, named by the smallest of its groups, for train and calibration.

    Args:
        thumbnails_of: gives `ml.data.scenes.thumbnail` of each row; by default from S3.
    """
    found = {}
    for split in (TRAIN, CALIBRATION):
        distinct = {row.group: row for row in rows if row.split == split}
        groups = sorted(distinct)
        log.info("looking for scenes among %s images of %s", f"{len(groups):,}", split)
        thumbnails = np.zeros((len(groups), scenes.HEIGHT * scenes.WIDTH), dtype=np.int16)
        for index, seen in enumerate(thumbnails_of([distinct[group] for group in groups])):
            thumbnails[index] = seen
        numbers = scenes.group(thumbnails).tolist()
        # The groups are sorted: the first of a scene is its smallest.
        names: dict[int, str] = {}
        for number, group in zip(numbers, groups, strict=True):
            names.setdefault(number, group)
        found[split] = {g: names[number] for number, g in zip(numbers, groups, strict=True)}
    return found


def _groups(listed: Iterable[tuple[ObjectInfo, str, str]]) -> list[str]:
    return [f"{content_hash(found)}-{found.size}" for found, _, _ in listed]


def _listed(name: str, storage: str) -> Iterable[tuple[ObjectInfo, str, str]]:
    for folder in dataset.class_folders(storage, name):
        split, label = folder.split("/")[-2:]
        for page in object_store().list_pages(folder):
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
