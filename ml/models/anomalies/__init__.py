"""Kinds of anomaly that a line's people know and have few or no pictures of, as drawings.

One file here is one kind; the option `synthetic` of an anomaly model names it by file name. It
offers one function::

    def draw(images: Tensor) -> tuple[Tensor, Tensor]

which takes a batch of normal images, float (B, 3, H, W) in [0, 1], and gives them back with an
anomaly of that kind in each, and where it is: a mask (B, 1, H, W) in [0, 1]. Every call draws anew
from torch's generator. `ml.models.components.drawing` has noise and shapes to draw with. That a
detector can be trained on drawn anomalies is from CutPaste (Li et al., 2021, arXiv:2104.04015) and
DRAEM (Zavrtanik et al., 2021, arXiv:2108.07610).
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


def kinds() -> list[str]:
    """The names of the kinds: the files of this folder."""
    folder = Path(__file__).parent
    return sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def drawing(kind: str) -> Draw:
    """The function that draws a kind; `kind` is one of `kinds()`."""
    draw: Draw = import_module(f"ml.models.anomalies.{kind}").draw
    return draw
