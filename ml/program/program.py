"""The exported program of a version: it scores images, on any device, without a model class.

A program takes uint8 pixels and contains its own preprocessing. `ml.program.selection` finds what
runs it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ml.errors import DataError, NightscoreError
from ml.program.device import Device
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo
from ml.program.precision import TOLERANCE
from ml.program.runtime import Runtime, is_map, map_rows
from ml.program.selection import select_runtimes

# Which anomaly maps `Program.predict` returns.
Maps = Literal["all", "flagged", "none"]
# Outputs may be outside of [0, 1] by so much, because of rounding.
_ROUNDING = 1e-3


def _empty() -> np.ndarray:
    return np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class Outputs:
    """The outputs for a batch; arrays that a program does not compute are empty.

    Attributes:
        probabilities: float32 (B, classes), of a classifier.
        scores: float32 (B,), of an anomaly detector.
        anomaly_maps: float32 (M, h, w), of an anomaly detector; may be coarser than the images.
        novelties: float32 (B,), of an anomaly detector that measures novelty.
        map_rows: int64 (M,), ascending: the rows of the batch that `anomaly_maps` are of.
    """

    probabilities: np.ndarray = field(default_factory=_empty)
    scores: np.ndarray = field(default_factory=_empty)
    anomaly_maps: np.ndarray = field(default_factory=_empty)
    novelties: np.ndarray = field(default_factory=_empty)
    map_rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __len__(self) -> int:
        return max(len(self.probabilities), len(self.scores))


def _replace(
    outputs: tuple[np.ndarray, ...],
    near: np.ndarray,
    recomputed: tuple[np.ndarray, ...],
    rows: np.ndarray,
) -> None:
    """Put in the outputs of the rows `near` that were computed again; `rows` have maps."""
    _, of_maps, of_near = np.intersect1d(rows, near, assume_unique=True, return_indices=True)
    for values, again in zip(outputs, recomputed, strict=True):
        if is_map(values):
            values[of_maps] = again[of_near]
        else:
            values[near] = again


class Program:
    """A program that is ready to run; create it with `Program.load`. Threads may share it.

    Args:
        runtime: Runs the program.
        info: What is recorded of the program.
        device: The device it runs on.
        float32_runtime: Runs it in float32, if `runtime` has a lower precision.
    """

    def __init__(
        self,
        runtime: Runtime,
        info: ProgramInfo,
        device: Device,
        float32_runtime: Runtime | None = None,
    ) -> None:
        self.runtime = runtime
        self.info = info
        self.device = device
        self.float32_runtime = float32_runtime

    @classmethod
    def load(
        cls, path: Path, info: ProgramInfo, device: Device, converted_file: bytes | None = None
    ) -> "Program":
        """Verify, open and test a program.

        Args:
            path: The program's file.
            info: What is recorded of the program.
            device: Where to run it.
            converted_file: The recorded file of the program converted for OpenVINO
                (`ml.program.conversion`), whose hash the caller has verified. Without it the
                program is converted here if it runs on a CPU, and the result is kept beside the
                program's file.

        Raises:
            DataError: The file's hash is not the recorded one, the file could run code (it is not
                opened), it is not an exported program, or its outputs do not fit its task and
                classes.
            ServiceError: The file cannot be read, or there is too little GPU memory.
        """
        if info.task == ANOMALY and info.threshold is None:
            raise DataError(f"The anomaly version {info.name} has no threshold recorded.")
        runtime, float32_runtime = select_runtimes(path, info, device, converted_file)
        program = cls(runtime, info, device, float32_runtime)
        program._smoke_test()
        return program

    @property
    def batch_size(self) -> int:
        """The number of images per call of `predict` that suits the device."""
        return self.runtime.batch_size

    def empty_batch(self, count: int) -> np.ndarray:
        """Return an uninitialised batch, from which the device copies fastest.

        Args:
            count: Number of images.

        Returns:
            uint8 (count, 3, H, W) of the program's input size, in channels-last order; for a GPU
            in page-locked memory.
        """
        return self.runtime.empty_batch(count, self.info.input_size)

    def predict(self, pixels: np.ndarray, *, maps: Maps = "all") -> Outputs:
        """Compute the outputs for a batch.

        In TF32 and bfloat16 (`ml.program.precision`), images whose class, flag or mark for review
        could change because of its error are computed again in float32. On a CPU one call uses one
        core; for many images, call it with batches from as many threads as there are cores.

        Args:
            pixels: uint8 (B, 3, H, W), B at least 1.
            maps: Which anomaly maps are returned: `all`, `none`, or `flagged`: at least those of
                the images whose score has reached the threshold.
        """
        map_threshold = self._map_threshold(maps)
        outputs = self.runtime(pixels, map_threshold)
        rows = map_rows(outputs[0], map_threshold)
        if self.float32_runtime is not None and len(near := self._near_threshold(outputs)):
            _replace(outputs, near, self.float32_runtime(pixels[near]), rows)
        if self.info.task == CLASSIFICATION:
            (probabilities,) = outputs
            return Outputs(probabilities=probabilities)
        scores, anomaly_maps, novelties = outputs if len(outputs) != 2 else (*outputs, _empty())
        return Outputs(scores=scores, anomaly_maps=anomaly_maps, novelties=novelties, map_rows=rows)

    def _map_threshold(self, maps: Maps) -> float | None:
        """Return the score from which on maps are computed; None: all maps."""
        if maps == "all" or self.info.threshold is None:
            return None
        # An image that is computed again may be flagged although its first score was lower.
        return np.inf if maps == "none" else self.info.threshold - self._tolerance

    @property
    def _tolerance(self) -> float:
        """The largest error of `runtime` that is corrected by `float32_runtime`."""
        return TOLERANCE[self.runtime.precision] if self.float32_runtime is not None else 0.0

    def _near_threshold(self, outputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return the rows whose decision an error within the tolerance could change."""
        values, error = outputs[0], self._tolerance
        if self.info.task == CLASSIFICATION:
            best_two = np.partition(values, -2, axis=1)[:, -2:]
            return np.flatnonzero(best_two[:, 1] - best_two[:, 0] < 2 * error)
        is_near = np.abs(values - self.info.threshold) < error
        if self.info.novelty_threshold is not None and len(outputs) > 2:
            is_near |= np.abs(outputs[2] - self.info.novelty_threshold) < error
        return np.flatnonzero(is_near)

    def _smoke_test(self) -> None:
        """Run the program on images of noise, and check its outputs.

        It is run with two numbers of images, since one that was exported for a fixed number fails
        with another. The images are noise, since the outputs for an image without contrast may not
        be finite.

        Raises:
            DataError: The program fails, or its outputs do not fit its task and classes.
        """
        height, width = self.info.input_size
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3, height, width), dtype=np.uint8)
        for count in (len(pixels), 1):
            try:
                outputs = self.predict(pixels[:count])
            except NightscoreError:
                raise  # such as too little GPU memory, which is not the program's fault
            except Exception as error:
                raise DataError(
                    f"The program of {self.info.name} does not take {count} uint8 images of "
                    f"{height} x {width} pixels: {str(error).splitlines()[0]}"
                ) from error
            self._check_outputs(outputs, count)

    def _check_outputs(self, outputs: Outputs, count: int) -> None:
        """Raise DataError unless the outputs for `count` images fit the task and the classes."""
        for name, shape in self._expected_shapes(outputs, count).items():
            values = getattr(outputs, name)
            if values.shape != shape or values.dtype != np.float32:
                raise DataError(
                    f"The program of {self.info.name} gives {name} of shape {values.shape} and "
                    f"type {values.dtype} for {count} images; its task {self.info.task} needs "
                    f"{shape} and float32."
                )
            in_range = (values >= -_ROUNDING) & (values <= 1 + _ROUNDING)
            if not (np.isfinite(values) & in_range).all():
                raise DataError(
                    f"The program of {self.info.name} gives {name} that are not all in [0, 1]: "
                    f"{values.min():.6g} to {values.max():.6g}."
                )

    def _expected_shapes(self, outputs: Outputs, count: int) -> dict[str, tuple[int, ...]]:
        if self.info.task == CLASSIFICATION:
            return {"probabilities": (count, len(self.info.classes))}
        # An anomaly map may have any height and width.
        size = outputs.anomaly_maps.shape[1:] if outputs.anomaly_maps.ndim == 3 else (1, 1)
        shapes: dict[str, tuple[int, ...]] = {"scores": (count,), "anomaly_maps": (count, *size)}
        if len(outputs.novelties) or self.info.novelty_threshold is not None:
            shapes["novelties"] = (count,)
        return shapes
