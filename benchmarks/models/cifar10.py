"""CIFAR-10 with all images of its split `train` to learn from."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import dataset
from ml.config.schema import Model

if TYPE_CHECKING:
    from ml.training.data import Splits


def load(path: Path, model: Model, most: int | None = None) -> "Splits":
    """The images of a folder or tar; the held-out ones are trained from, too.

    The arguments are those of `benchmarks.models.dataset.load`.
    """
    from ml.training.data import Split

    splits = dataset.load(path, model, most)
    both = splits.train, splits.holdout
    train = Split(
        np.concatenate([part.pixels for part in both]),
        np.concatenate([part.labels for part in both]),
        [row for part in both for row in part.rows],
    )
    return replace(splits, train=train)
