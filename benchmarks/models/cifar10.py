"""CIFAR-10 as tensors: all images of the split `train`, none held out, and those of `test`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.models import dataset
from ml.config.schema import Model

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Pixels, uint8 (N, 3, H, W), and labels, int64 (N,), to train from and to test on."""

    classes: tuple[str, ...]
    train: "tuple[Tensor, Tensor]"
    test: "tuple[Tensor, Tensor]"


def load(path: Path, model: Model, most: int | None = None) -> Images:
    """The images of a folder or tar; see `benchmarks.models.dataset.load`."""
    import torch

    splits = dataset.load(path, model, most)
    parts = splits.train.tensors(), splits.holdout.tensors()
    pixels, labels = (torch.cat(pair) for pair in zip(*parts, strict=True))
    return Images(splits.classes, (pixels, labels), splits.test.tensors())
