"""The exported program of a version: what scores images, on any device, without a model class.

A program (`.pt2`, https://docs.pytorch.org/docs/stable/export.html) takes uint8 pixels and holds
its own preprocessing. Its file is read once; what was read is checked against the recorded SHA-256
and by `ml.program.archive_check`, and only then opened. `ml.program.runtime` executes it.
"""

import hashlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ml import files
from ml.errors import DataError, NightscoreError, ServiceError
from ml.program import archive_check
from ml.program.device import Device
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from ml.program.conversion import Converted
    from ml.program.runtime import Runtime

    # What runs a program quickest, and what decides close cases, if another.
    Pair = tuple[Runtime, Runtime | None]

log = logging.getLogger(__name__)

# torch reads one program at a time ("_CURRENT_DESERIALIZER is already set").
_LOADING = threading.Lock()
# How far rounding may take an output out of [0, 1].
_ROUNDING = 1e-3


def _nothing() -> np.ndarray:
    return np.empty(0, dtype=np.float32)


@dataclass(frozen=True)
class Outputs:
    """A batch's outputs: `probabilities` float32 (B, classes) for a classifier; `scores` float32
    (B,) and `heatmaps` float32 (B, h, w), which may be coarser than the images, for an anomaly
    detector, and `novelties` float32 (B,) if it has them. What there is not is empty.
    """

    probabilities: np.ndarray = field(default_factory=_nothing)
    scores: np.ndarray = field(default_factory=_nothing)
    heatmaps: np.ndarray = field(default_factory=_nothing)
    novelties: np.ndarray = field(default_factory=_nothing)

    def __len__(self) -> int:
        return max(len(self.probabilities), len(self.scores))


class Program:
    """A loaded program; make one with `Program.load`. Threads may share it."""

    def __init__(
        self,
        runtime: "Runtime",
        info: ProgramInfo,
        device: Device,
        exact: "Runtime | None" = None,
    ) -> None:
        self.runtime = runtime
        self.info = info
        self.device = device
        self.exact = exact

    @classmethod
    def load(
        cls, path: Path, info: ProgramInfo, device: Device, form: bytes | None = None
    ) -> "Program":
        """Verify, open and try a program.

        Args:
            form: the program's form for OpenVINO (`ml.program.conversion`) as it was recorded; the
                caller has compared its hash. Without one a CPU makes it, and keeps it beside the
                program.

        Raises:
            DataError: the file's hash is not the recorded one or the file could run code (it is not
                opened), it is no exported program, or its outputs do not fit its task and classes.
            ServiceError: the file cannot be read, or there is too little GPU memory.
        """
        content = _verified(path, info)
        if info.task == ANOMALY and info.threshold is None:
            raise DataError(f"The anomaly version {info.name} has no threshold recorded.")
        program = cls(*_runtimes(content, path, info, device, form))
        program._try()
        return program

    def predict(self, pixels: np.ndarray) -> Outputs:
        """Outputs for uint8 pixels (B, 3, H, W); B is at least 1.

        In bfloat16 (`ml.program.runtime.precision`) the images whose class, flag or mark for
        review its error could change are computed again in float32. On a CPU this computes on one
        core; many images are best given in batches, from as many threads as there are cores.
        """
        outputs = self.runtime(pixels)
        if self.exact is not None and len(close := self._too_close(outputs)):
            for values, exact in zip(outputs, self.exact(pixels[close]), strict=True):
                values[close] = exact
        if self.info.task == CLASSIFICATION:
            (probabilities,) = outputs
            return Outputs(probabilities=probabilities)
        scores, heatmaps, novelties = outputs if len(outputs) != 2 else (*outputs, _nothing())
        return Outputs(scores=scores, heatmaps=heatmaps, novelties=novelties)

    def _too_close(self, outputs: tuple[np.ndarray, ...]) -> np.ndarray:
        """The rows that an error within the tolerance could push across a threshold, or to another
        class.
        """
        from ml.program.runtime import TOLERANCE

        values, error = outputs[0], TOLERANCE["bfloat16"]
        if self.info.task == CLASSIFICATION:
            best = np.partition(values, -2, axis=1)[:, -2:]
            return np.flatnonzero(best[:, 1] - best[:, 0] < 2 * error)
        close = np.abs(values - self.info.threshold) < error
        if self.info.novelty_threshold is not None and len(outputs) > 2:
            close |= np.abs(outputs[2] - self.info.novelty_threshold) < error
        return np.flatnonzero(close)

    def _try(self) -> None:
        """Refuse a program that does not do for images what is recorded of it.

        It is tried with two numbers of images, as one that was exported for a fixed number takes
        no other; and with noise, since a program may give no number for an image without any
        contrast.
        """
        height, width = self.info.input_size
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3, height, width), dtype=np.uint8)
        for count in (len(pixels), 1):
            try:
                outputs = self.predict(pixels[:count])
            except NightscoreError:
                raise  # such as too little GPU memory, which says nothing of the program
            except Exception as error:
                raise DataError(
                    f"The program of {self.info.name} does not take {count} uint8 images of "
                    f"{height} x {width} pixels: {str(error).splitlines()[0]}"
                ) from error
            self._check(outputs, count)

    def _check(self, outputs: Outputs, count: int) -> None:
        """Raise DataError unless the outputs for `count` images fit the task and the classes."""
        if self.info.task == CLASSIFICATION:
            wanted: dict[str, tuple[int, ...]] = {"probabilities": (count, len(self.info.classes))}
        else:
            coarse = outputs.heatmaps.shape[1:]  # of any size, but two numbers
            coarse = coarse if len(coarse) == 2 else (1, 1)
            wanted = {"scores": (count,), "heatmaps": (count, *coarse)}
            if len(outputs.novelties) or self.info.novelty_threshold is not None:
                wanted["novelties"] = (count,)
        for name, shape in wanted.items():
            found = getattr(outputs, name)
            if found.shape != shape or found.dtype != np.float32:
                raise DataError(
                    f"The program of {self.info.name} gives {name} of shape {found.shape} and "
                    f"type {found.dtype} for {count} images; its task {self.info.task} needs "
                    f"{shape} and float32."
                )
            if not (np.isfinite(found) & (found >= -_ROUNDING) & (found <= 1 + _ROUNDING)).all():
                raise DataError(
                    f"The program of {self.info.name} gives {name} that are not all in [0, 1]: "
                    f"{found.min():.6g} to {found.max():.6g}."
                )


def _verified(path: Path, info: ProgramInfo) -> bytes:
    """The content of a program's file, which is the recorded one; it is not looked at again."""
    try:
        with path.open("rb") as file:
            content = file.read(archive_check.LARGEST_FILE + 1)
    except OSError as error:
        raise ServiceError(
            f"The program of {info.name} cannot be read: {error}.",
            "It is fetched again when its folder is removed.",
        ) from error
    if len(content) > archive_check.LARGEST_FILE:
        raise DataError(
            f"The program of {info.name} has more than {archive_check.LARGEST_FILE} bytes."
        )
    found = hashlib.sha256(content).hexdigest()
    if found != info.sha256:
        raise DataError(
            f"The program of {info.name} has SHA-256 {found}, recorded is {info.sha256}.",
            f"{path} was changed or damaged. Find out by whom; when its folder is removed, it is "
            "fetched again. Or promote another version.",
        )
    return content


def _runtimes(
    content: bytes, path: Path, info: ProgramInfo, device: Device, form: bytes | None
) -> tuple["Runtime", ProgramInfo, Device, "Runtime | None"]:
    """What runs the program quickest on the device, and what decides close cases, if another."""
    from ml.program import runtime

    if device == "cuda":
        return runtime.TorchRuntime(_opened(content, info), device), info, device, None
    found = _recorded_form(form, info) if form is not None else None
    if found is None:
        found = _form_of_this_machine(content, path, info)
    if found is None:
        return runtime.TorchRuntime(_opened(content, info), device), info, device, None
    quick, exact = found
    return quick, info, device, exact


def _recorded_form(form: bytes, info: ProgramInfo) -> "Pair | None":
    """What runs the recorded form; None, and a warning, when it does not do on this machine."""
    try:
        return _opened_form(form, info)
    except _UnfitForm as error:
        log.warning("%s; it is converted here. %s", error.message.rstrip("."), error.hint)
        return None


def check_form(form: bytes, info: ProgramInfo) -> None:
    """Raise DataError unless OpenVINO runs this form on this machine, as torch runs the program."""
    _opened_form(form, info)


class _UnfitForm(DataError):
    """A form that does not do on this machine, though it is the recorded one."""


def _opened_form(form: bytes, info: ProgramInfo) -> "Pair":
    from ml.program import conversion

    try:
        converted = conversion.unpack(form)
        if converted.program == info.sha256:
            return _in_openvino(converted, info)
    except NightscoreError:
        raise
    except Exception as error:  # whatever another OpenVINO finds wrong with it
        raise _UnfitForm(
            f"The recorded form of {info.name} does not do with OpenVINO {conversion.version()} "
            f"on this machine ({_first_line(error)}).",
            f"`nightscore models convert {info.model}` makes it anew for all machines.",
        ) from error
    raise DataError(
        f"The form for OpenVINO that is recorded of {info.name} is of another program.",
        "Find out by whom it was recorded. "
        f"`nightscore models convert {info.model}` makes it anew.",
    )


def _form_of_this_machine(content: bytes, path: Path, info: ProgramInfo) -> "Pair | None":
    """What runs the form that is made here; None, and a warning, when OpenVINO cannot run it."""
    from ml.program import conversion

    try:
        return _in_openvino(conversion.unpack(_converted(content, path, info)), info)
    except NightscoreError:
        raise
    except Exception as error:  # whatever an operation unknown to OpenVINO makes it raise
        reason = _first_line(error)
        log.warning("OpenVINO cannot run %s (%s); torch does, more slowly", info.name, reason)
        return None


def _in_openvino(converted: "Converted", info: ProgramInfo) -> "Pair":
    """A form's runtime, and one in float32 if it is another, compared with torch's outputs."""
    from ml.program import runtime

    quick = converted.runtime(runtime.precision(), info.input_size)
    is_exact = quick.precision == "float32"
    exact = None if is_exact else converted.runtime("float32", info.input_size)
    converted.check(exact or quick, info.input_size)
    return quick, exact


def convert(path: Path, info: ProgramInfo) -> bytes | None:
    """The file of a program's form for OpenVINO; None, and a warning, if OpenVINO cannot run it.

    Raises:
        DataError, ServiceError: as `Program.load`.
    """
    content = _verified(path, info)
    try:
        return _converted(content, path, info)
    except NightscoreError:
        raise
    except OSError as error:
        raise ServiceError(
            f"The program of {info.name} cannot be converted: {error}.",
            "Make room in the folder for temporary files.",
        ) from error
    except Exception as error:  # whatever an operation unknown to OpenVINO makes it raise
        log.warning("OpenVINO cannot run %s (%s)", info.name, _first_line(error))
        return None


def _converted(content: bytes, path: Path, info: ProgramInfo) -> bytes:
    """The file of the program's form: made, compared with torch, and kept beside the program."""
    from ml.program import conversion

    kept = path.with_suffix(".openvino.zip")
    with suppress(OSError, ValueError):
        form = kept.read_bytes()
        found = conversion.unpack(form)
        if (found.program, found.openvino) == (info.sha256, conversion.version()):
            return form
    form = conversion.convert(_opened(content, info), info.sha256, info.input_size)
    try:
        files.atomic_write(kept, form)
    except OSError as error:
        log.warning("The form of %s cannot be kept in %s: %s", info.name, kept.parent, error)
    return form


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _opened(content: bytes, info: ProgramInfo) -> "ExportedProgram":
    try:
        checked = archive_check.sanitize(content)
    except ValueError as error:
        raise DataError(
            f"The program of {info.name} is not opened: {error}.",
            "What a program may consist of is in ml/program/archive_check.py.",
        ) from error
    import torch

    try:
        with _LOADING:
            return torch.export.load(io.BytesIO(checked))
    except Exception as error:
        raise DataError(f"The program of {info.name} cannot be opened: {error}") from error


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
