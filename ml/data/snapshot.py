"""An immutable list of a data set's images, from which a training run can be reproduced.

A snapshot is a Parquet file in S3, which is named by a hash of the images and of how they are
split. It also records what each image is used for (`part`), so that no later step decides it.
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

# The splits of a data set, which are folders.
TRAIN, CALIBRATION, TEST = "train", "calibration", "test"
# The parts of a snapshot, see `Row`.
FIT, HOLDOUT, THRESHOLD, REPORT, EXCLUDED = "fit", "holdout", "threshold", "report", "excluded"

HoldoutBy = Literal["image", "scene"]
# Objects with their split and label.
Listing = Sequence[tuple[ObjectInfo, str, str]]


class Row(NamedTuple):
    """An image of a snapshot.

    Attributes:
        uri: of the object.
        etag: of the object.
        size: of the object in bytes.
        split: the folder SPLIT of the data set.
        label: the folder CLASS.
        group: equal for images with the same bytes.
        part: what the image is used for. `fit`: to train. `holdout` (of the split train) and
            `threshold` (of calibration): for the gate and the threshold. `report`: for metrics that
            are only reported. `excluded`: for nothing, as an image with the same bytes is in a
            split that is only reported.
        scene: equal for images of the same scene (`ml.data.scenes`) and split, if scenes are held
            out; else the group.
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
    """A snapshot.

    Attributes:
        uri: of its file.
        dataset: the name of the data set.
        rows: in the order of their URIs.
    """

    uri: str
    dataset: str
    rows: tuple[Row, ...]

    @property
    def hash(self) -> str:
        """The hash that names the file."""
        return self.uri.rsplit("/", 1)[-1].removesuffix(".parquet")

    @property
    def synthetic(self) -> bool:
        """Whether any image is one of the built-in samples."""
        return any(is_synthetic(row.uri) for row in self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of the split train, sorted."""
        return tuple(sorted({row.label for row in self.rows if row.split == TRAIN}))

    def select(
        self, *, split: str | None = None, part: str | None = None, label: str | None = None
    ) -> list[Row]:
        """The rows of a split, part and label; None means any."""
        return [
            row
            for row in self.rows
            if split in (None, row.split)
            and part in (None, row.part)
            and label in (None, row.label)
        ]


def take_snapshot(
    name: str, storage: str, *, holdout_share: float, holdout_by: HoldoutBy = "image"
) -> str:
    """List a data set, decide what each image is used for, and store the list.

    A list that is stored already is written again, so that its age says when it was last taken.

    To hold out scenes, it reads the images of train and calibration, unless there is a snapshot of
    the same images already.

    Args:
        name: the data set.
        storage: the URI below which all data sets and snapshots are.
        holdout_share: the share of the split train to hold out.
        holdout_by: whether to hold out single images or whole scenes.

    Returns:
        The URI of the snapshot; equal for equal content and arguments.

    Raises:
        DataError: the data set has no images in the split train; or scenes are held out, and an
            image cannot be decoded.
    """
    listing = list(_list_images(name, storage))
    if not any(split == TRAIN for _, split, _ in listing):
        raise DataError(
            f"Data set {name!r} has no training images in {dataset.folder(storage, name)}/train.",
            f"Bring them with `nightscore dataset import PATH --name {name}`.",
        )
    rows = assign(listing, holdout_share)
    digest = _digest(rows, "" if holdout_by == "image" else f"scene {scenes.LIMIT} {holdout_share}")
    uri = f"{storage}/snapshots/{name}/{digest}.parquet"
    try:
        content, _ = object_store().get(uri)
    except FileNotFoundError:
        if holdout_by == "scene":
            rows = assign(listing, holdout_share, find_scenes(rows))
        content = _to_parquet(rows)
    object_store().put(uri, content)
    return uri


def dataset_of(uri: str) -> str:
    """Return the name of the data set that a snapshot lists."""
    return uri.split("/")[-2]


def _digest(rows: Sequence[Row], scene_settings: str) -> str:
    """Hash the rows as they are if single images are held out, and how scenes are held out.

    The scenes themselves are not needed: they follow from the ETags and these settings.
    """
    content = ["\t".join(map(str, row[:-1])) for row in rows]
    if scene_settings:
        content.append(scene_settings)
    return hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]


def load_snapshot(uri: str) -> Snapshot:
    """Read a snapshot.

    Raises:
        DataError: there is no snapshot at this URI.
    """
    import pyarrow.parquet as parquet

    try:
        content, _ = object_store().get(uri)
    except FileNotFoundError:
        raise DataError(f"There is no snapshot {uri}.") from None
    columns = parquet.read_table(io.BytesIO(content)).to_pydict()
    columns.setdefault("scene", columns["group"])  # snapshots of older versions have no scenes
    rows = tuple(Row(*values) for values in zip(*(columns[f] for f in Row._fields), strict=True))
    return Snapshot(uri, dataset_of(uri), rows)


def assign(
    listing: Listing,
    holdout_share: float,
    scenes_of: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Row]:
    """Decide what each image is used for.

    Images with the same bytes are one group, which stays together. Without scenes, the part of a
    group depends on its content alone: an image that is held out once is held out in every later
    snapshot, and so are its copies. With scenes, a whole scene is held out or not
    (`ml.data.scenes.hold_out`); when new images join scenes, other scenes may be held out.

    Args:
        listing: the images of the data set.
        holdout_share: the share of the split train to hold out.
        scenes_of: split → group → scene, for train and calibration. None: single images are held
            out.

    Returns:
        The rows of a snapshot, in the order of their URIs.
    """
    groups = _groups(listing)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for (_, split, _), group in zip(listing, groups, strict=True):
        splits_of[group].add(split)
    scenes_of = scenes_of or {}
    labels = {
        split: {
            (group, label)
            for (_, image_split, label), group in zip(listing, groups, strict=True)
            if image_split == split and _decides(split, splits_of[group])
        }
        for split in (TRAIN, CALIBRATION)
    }
    holdout = _choose_holdout(TRAIN, labels[TRAIN], holdout_share, scenes_of.get(TRAIN))
    # Without labels: often all images of a kind of anomaly are one scene, which may be held out.
    anomalies = {(group, "") for group, _ in labels[CALIBRATION]}
    holdout |= _choose_holdout(CALIBRATION, anomalies, 0.5, scenes_of.get(CALIBRATION))
    rows = [
        Row(image.uri, image.etag, image.size, split, label, group,
            _part(split, splits_of[group], is_holdout=group in holdout),
            scenes_of.get(split, {}).get(group, group))
        for (image, split, label), group in zip(listing, groups, strict=True)
    ]  # fmt: skip
    return sorted(rows)


def _decides(split: str, splits: set[str]) -> bool:
    """Whether the holdout of `split` decides about an image that is in `splits`."""
    # For an image in both train and calibration, calibration decides.
    return not splits - {TRAIN, CALIBRATION} and (split == CALIBRATION or splits == {TRAIN})


def _choose_holdout(
    split: str,
    labels: set[tuple[str, str]],
    holdout_share: float,
    scene_of: Mapping[str, str] | None,
) -> set[str]:
    """Choose the images to hold out from those of a split, given as pairs (group, label)."""
    images = {group for group, _ in labels}
    if scene_of is not None and images:
        holdout = scenes.hold_out(
            {group: scene_of[group] for group in images}, holdout_share, labels
        )
        if holdout:
            log.info(
                "%s: %s of %s images are held out, in %s of %s scenes", split, len(holdout),
                len(images), len({scene_of[group] for group in holdout}),
                len({scene_of[group] for group in images}),
            )  # fmt: skip
            return holdout
        log.warning(
            "%s: too few scenes to hold one out; single images are held out, and what is measured "
            "on them is better than what will be seen at another place",
            split,
        )
    return {group for group in images if _fraction(group) >= 1 - holdout_share}


def _fraction(group: str) -> float:
    """A number in [0, 1) that follows from the hash of a group."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12


def _part(split: str, splits: set[str], *, is_holdout: bool) -> str:
    if split not in (TRAIN, CALIBRATION):
        return REPORT
    if splits - {TRAIN, CALIBRATION}:
        return EXCLUDED
    if not is_holdout:
        return FIT
    return HOLDOUT if split == TRAIN else THRESHOLD


def _thumbnails(rows: Sequence[Row]) -> Iterable[np.ndarray]:
    return dataset.read(rows, (scenes.HEIGHT, scenes.WIDTH), scenes.thumbnail)


def find_scenes(
    rows: Sequence[Row],
    thumbnails_of: Callable[[Sequence[Row]], Iterable[np.ndarray]] = _thumbnails,
) -> dict[str, dict[str, str]]:
    """Find the scenes of the splits train and calibration.

    Args:
        rows: the images.
        thumbnails_of: computes `ml.data.scenes.thumbnail` of rows; by default from S3.

    Returns:
        split → group → scene, which is named by the smallest of its groups.
    """
    scenes_of = {}
    for split in (TRAIN, CALIBRATION):
        distinct = {row.group: row for row in rows if row.split == split}
        groups = sorted(distinct)
        log.info("looking for scenes among %s images of %s", f"{len(groups):,}", split)
        thumbnails = np.zeros((len(groups), scenes.HEIGHT * scenes.WIDTH), dtype=np.int16)
        for index, thumbnail in enumerate(thumbnails_of([distinct[group] for group in groups])):
            thumbnails[index] = thumbnail
        numbers = scenes.group(thumbnails).tolist()
        # The groups are sorted: the first one of a scene is the smallest.
        names: dict[int, str] = {}
        for number, group in zip(numbers, groups, strict=True):
            names.setdefault(number, group)
        scenes_of[split] = {
            group: names[number] for number, group in zip(numbers, groups, strict=True)
        }
    return scenes_of


def _groups(listing: Listing) -> list[str]:
    return [f"{content_hash(image)}-{image.size}" for image, _, _ in listing]


def _list_images(name: str, storage: str) -> Iterable[tuple[ObjectInfo, str, str]]:
    for folder in dataset.class_folders(storage, name):
        split, label = folder.split("/")[-2:]
        for page in object_store().list_pages(folder):
            for image in page:
                # Deeper folders are not part of the layout.
                if image.uri.rsplit("/", 1)[0] == folder and image.uri.lower().endswith(SUFFIXES):
                    yield image, split, label


def _to_parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {field: [getattr(row, field) for row in rows] for field in Row._fields}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
