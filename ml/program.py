"""The exported program of a version: what scores images, on any device, without a model class.

A program (`.pt2`, https://docs.pytorch.org/docs/stable/export.html) takes uint8 pixels and holds
its own preprocessing. Its file is checked against the recorded SHA-256 before it is opened.
"""

import hashlib
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

CLASSIFICATION, ANOMALY = "classification", "anomaly"
# torch reads one program at a time ("_CURRENT_DESERIALIZER is already set").
_LOADING = threading.Lock()


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class ProgramInfo:
    """What is recorded of a program beside its file.

    `input_size` is (height, width) in pixels; `threshold` is set for the task `anomaly`;
    `version` is None before registration.
    """

    model: str
    version: int | None
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    threshold: float | None
    sha256: str
    synthetic: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}" if self.version else self.model


@dataclass(frozen=True)
class Outputs:
    """A batch's outputs: `probabilities` float32 (B, classes) for a classifier; `scores` float32
    (B,) and `heatmaps` float32 (B, H, W) for an anomaly detector."""

    probabilities: np.ndarray = field(default_factory=_nothing)
    scores: np.ndarray = field(default_factory=_nothing)
    heatmaps: np.ndarray = field(default_factory=_nothing)


class Program:
    """A loaded program; make one with `Program.load`."""

    def __init__(self, module: Any, info: ProgramInfo, device: "torch.device") -> None:
        self.module = module
        self.info = info
        self.device = device

    @classmethod
    def load(cls, path: Path, info: ProgramInfo, device: "torch.device") -> "Program":
        """Verify, open and try a program.

        Raises
        ------
        DataError: the file's hash is not the recorded one (the file is not opened), it is no
            exported program, or its outputs do not fit its task and classes.
        """
        import torch

        found = sha256(path)
        if found != info.sha256:
            raise DataError(
                f"The program of {info.name} has SHA-256 {found}, recorded is {info.sha256}.",
                "The artifact was changed or damaged; restore it or promote another version.",
            )
        if info.task == ANOMALY and info.threshold is None:
            raise DataError(f"The anomaly version {info.name} has no threshold recorded.")
        try:
            with _LOADING:
                exported = torch.export.load(path)
        except Exception as error:
            raise DataError(f"The program of {info.name} cannot be opened: {error}") from error
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            exported = move_to_device_pass(exported, device)
        program = cls(exported.module(), info, device)
        program._try()
        return program

    def predict(self, pixels: "Tensor") -> Outputs:
        """Outputs for uint8 pixels (B, 3, H, W) on any device; B is at least 1."""
        import torch

        with torch.inference_mode():
            outputs = self.module(pixels.to(self.device, non_blocking=True))
        if self.info.task == CLASSIFICATION:
            return Outputs(probabilities=_numpy(outputs))
        scores, heatmaps = outputs
        return Outputs(scores=_numpy(scores), heatmaps=_numpy(heatmaps))

    def _try(self) -> None:
        import torch

        height, width = self.info.input_size
        example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
        try:
            outputs = self.predict(example)
        except Exception as error:
            raise DataError(
                f"The program of {self.info.name} does not take uint8 images of "
                f"{height} x {width} pixels: {str(error).splitlines()[0]}"
            ) from error
        if self.info.task == CLASSIFICATION:
            wanted: dict[str, tuple[int, ...]] = {"probabilities": (2, len(self.info.classes))}
        else:
            wanted = {"scores": (2,), "heatmaps": (2, height, width)}
        for name, shape in wanted.items():
            found = getattr(outputs, name).shape
            if found != shape:
                raise DataError(
                    f"The program of {self.info.name} gives {name} of shape {tuple(found)} for two "
                    f"images; its task {self.info.task} needs {shape}."
                )


def export(network: "torch.nn.Module", path: Path, input_size: tuple[int, int]) -> None:
    """Export a network's `forward` for uint8 pixels of any batch size to a `.pt2` file."""
    import torch

    height, width = input_size
    # A batch of one would be frozen into the program.
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    exported = torch.export.export(
        network.eval().cpu(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    with quiet_export():
        torch.export.save(exported, path)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Export without the warning about each weight in channels-last order; such are whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        yield


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numpy(tensor: "Tensor") -> np.ndarray:
    return tensor.float().cpu().numpy()
