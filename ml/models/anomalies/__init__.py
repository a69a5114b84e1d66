"""Synthetic anomalies, to train a detector on what nobody has enough pictures of.

One file here is one kind of anomaly; the option `synthetic` of an anomaly model names it by file
name. A file offers one function::

    def synthesize(images: Tensor) -> tuple[Tensor, Tensor]

It takes normal images, float (B, 3, H, W) in [0, 1], and returns them with an anomaly in each, and
a mask of where it is, float (B, 1, H, W) in [0, 1]. Each call makes other anomalies, from torch's
global generator. `ml.models.components.procedural` has noise and shapes to make them of.

That a detector can be trained on synthetic anomalies is from CutPaste (Li et al., 2021,
arXiv:2104.04015) and DRAEM (Zavrtanik et al., 2021, arXiv:2108.07610).
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

Synthesize = Callable[[Tensor], tuple[Tensor, Tensor]]


def names() -> list[str]:
    """The kinds of synthetic anomaly, sorted: the files of this folder."""
    folder = Path(__file__).parent
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def load(name: str) -> Synthesize:
    """The function that makes a kind of anomaly, one of `names()`."""
    synthesize: Synthesize = import_module(f"ml.models.anomalies.{name}").synthesize
    return synthesize
