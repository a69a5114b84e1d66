"""What a model trains on and is held out from, as arrays, from a snapshot."""

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
# Images of rows at a size, for a key that names them: `ml.training.pixels.load`.
Read = Callable[[Sequence[Row], tuple[int, int], str], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Images and labels: uint8 (N, 3, H, W), int64 (N,), and the rows they are from."""

    pixels: np.ndarray
    labels: np.ndarray
    rows: Sequence[Row]

    def __len__(self) -> int:
        return len(self.labels)

    def tensors(self) -> "tuple[Tensor, Tensor]":
        """The images and labels as torch takes them, without a copy."""
        import torch

        return torch.from_numpy(self.pixels), torch.from_numpy(self.labels)


@dataclass(frozen=True)
class Parts:
    """`fit` trains. `holdout` is for the threshold, the gate and the comparison with the champion.
    `test` is only reported."""

    classes: tuple[str, ...]
    fit: Part
    holdout: Part
    test: Part


def load(snapshot: Snapshot, model: Model, read: Read = pixels.load) -> Parts:
    """The parts of a snapshot for a model's task.

    `read` is where the images come from: S3, unless a benchmark has them in memory.

    Raises:
        DataError: a part that is needed is empty, or there are fewer than two classes to tell
            apart.
    """
    classes = ANOMALY_CLASSES if model.task == "anomaly" else snapshot.classes
    parts = Parts(
        classes,
        _part(snapshot, model, read, classes, "fit", [(TRAIN, FIT), (CALIBRATION, FIT)]),
        _part(
            snapshot, model, read, classes, "holdout", [(TRAIN, HOLDOUT), (CALIBRATION, THRESHOLD)]
        ),
        _part(snapshot, model, read, classes, "test", [(TEST, REPORT)]),
    )
    _check(parts, snapshot, model)
    return parts


def _part(
    snapshot: Snapshot,
    model: Model,
    read: Read,
    classes: tuple[str, ...],
    name: str,
    wanted: Sequence[tuple[str, str]],
) -> Part:
    # Calibration images are anomalies to learn a threshold from; a classifier has no use for them.
    if model.task == "classification":
        wanted = [pair for pair in wanted if pair[0] != CALIBRATION]
    rows = [row for split, part in wanted for row in snapshot.select(split=split, part=part)]
    if model.task == "classification":
        rows = [row for row in rows if row.label in classes]
        labels = [classes.index(row.label) for row in rows]
    else:
        labels = [int(row.label != NORMAL) for row in rows]
    if not rows:
        return Part(np.empty((0, 3, *model.input_size), np.uint8), np.empty(0, np.int64), rows)
    array = read(rows, model.input_size, f"{snapshot.hash}-{model.task}-{name}")
    return Part(array, np.array(labels, dtype=np.int64), rows)


def _check(parts: Parts, snapshot: Snapshot, model: Model) -> None:
    hint = f"Bring more images with `nightscore dataset import PATH --name {snapshot.dataset}`."
    if model.task == "classification" and len(parts.classes) < 2:
        raise DataError(f"Data set {snapshot.dataset!r} has fewer than two classes.", hint)
    if model.task == "anomaly" and not (parts.fit.labels == 0).any():
        raise DataError(f"Data set {snapshot.dataset!r} has no images train/normal.", hint)
    if not len(parts.fit) or not len(parts.holdout):
        raise DataError(f"Data set {snapshot.dataset!r} is too small to hold images out.", hint)
