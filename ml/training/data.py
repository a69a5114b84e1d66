"""The images that a model trains on and is measured on, as arrays, from a snapshot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ml.config.schema import Model
from ml.data.snapshot import (
    CALIBRATION,
    FIT,
    HOLDOUT,
    REPORT,
    TEST,
    THRESHOLD,
    TRAIN,
    Row,
    Snapshot,
)
from ml.errors import DataError
from ml.program.info import ANOMALOUS, NORMAL
from ml.training import pixels

if TYPE_CHECKING:
    from torch import Tensor

ANOMALY_CLASSES = (NORMAL, ANOMALOUS)
# Loads the images of rows at a size, with a key that names them: see `ml.training.pixels.load`.
LoadPixels = Callable[[Sequence[Row], tuple[int, int], str], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        pixels: uint8 (N, 3, H, W), RGB.
        labels: int64 (N,), indices into the classes.
        rows: the rows of the snapshot that the images are from.
    """

    pixels: np.ndarray
    labels: np.ndarray
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> "tuple[Tensor, Tensor]":
        """Pixels and labels as tensors, without a copy."""
        import torch

        return torch.from_numpy(self.pixels), torch.from_numpy(self.labels)


@dataclass(frozen=True)
class Splits:
    """The splits of a snapshot.

    Attributes:
        classes: the names of the classes.
        train: what weights are trained on.
        holdout: for the threshold, the gate and the comparison with the champion.
        test: only reported.
    """

    classes: tuple[str, ...]
    train: Split
    holdout: Split
    test: Split


def load(snapshot: Snapshot, model: Model, load_pixels: LoadPixels = pixels.load) -> Splits:
    """Load the splits of a snapshot for a model's task.

    Args:
        snapshot: the list of images.
        model: its task and input size.
        load_pixels: where the images come from: S3, unless a benchmark has them in memory.

    Raises:
        DataError: the train or holdout split is empty, or there are fewer than two classes.
    """
    classes = ANOMALY_CLASSES if model.task == "anomaly" else snapshot.classes

    def load_split(name: str, selections: Sequence[tuple[str, str]]) -> Split:
        rows = _select(snapshot, model, classes, selections)
        labels = _labels(rows, model, classes)
        if not rows:
            return Split(np.empty((0, 3, *model.input_size), np.uint8), labels, rows)
        key = f"{snapshot.hash}-{model.task}-{name}"
        return Split(load_pixels(rows, model.input_size, key), labels, rows)

    splits = Splits(
        classes,
        train=load_split("train", [(TRAIN, FIT), (CALIBRATION, FIT)]),
        holdout=load_split("holdout", [(TRAIN, HOLDOUT), (CALIBRATION, THRESHOLD)]),
        test=load_split("test", [(TEST, REPORT)]),
    )
    _check(splits, snapshot, model)
    return splits


def _select(
    snapshot: Snapshot,
    model: Model,
    classes: tuple[str, ...],
    selections: Sequence[tuple[str, str]],
) -> list[Row]:
    """The rows of some (split, part) of a snapshot that a model can learn from."""
    rows = [row for split, part in selections for row in snapshot.select(split=split, part=part)]
    if model.task != "classification":
        return rows
    # Calibration images are anomalies to choose a threshold with; a classifier has none.
    return [row for row in rows if row.split != CALIBRATION and row.label in classes]


def _labels(rows: Sequence[Row], model: Model, classes: tuple[str, ...]) -> np.ndarray:
    if model.task == "classification":
        labels = [classes.index(row.label) for row in rows]
    else:
        labels = [int(row.label != NORMAL) for row in rows]
    return np.array(labels, dtype=np.int64)


def _check(splits: Splits, snapshot: Snapshot, model: Model) -> None:
    hint = f"Bring more images with `nightscore dataset import PATH --name {snapshot.dataset}`."
    if model.task == "classification" and len(splits.classes) < 2:
        raise DataError(f"Data set {snapshot.dataset!r} has fewer than two classes.", hint)
    if model.task == "anomaly" and not (splits.train.labels == 0).any():
        raise DataError(f"Data set {snapshot.dataset!r} has no images train/normal.", hint)
    if not len(splits.train) or not len(splits.holdout):
        raise DataError(f"Data set {snapshot.dataset!r} is too small to hold images out.", hint)
