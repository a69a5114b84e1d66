"""Select what runs a program: torch on a GPU, OpenVINO on a CPU, torch where OpenVINO cannot.

OpenVINO runs a converted program (`ml.program.conversion`). It is the recorded one, which was
converted at registration, if that works on this machine. Otherwise the program is converted here,
and the result is kept beside the program's file.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ml import files
from ml.errors import DataError, NightscoreError, ServiceError
from ml.program import conversion, program_file, runtime
from ml.program.conversion import ConvertedProgram
from ml.program.device import Device
from ml.program.gpu import cuda_streams
from ml.program.gpu_memory import memory_errors
from ml.program.gpu_runtime import GpuRuntime
from ml.program.info import ProgramInfo
from ml.program.precision import requested_precision
from ml.program.runtime import Runtime

if TYPE_CHECKING:
    from torch.export import ExportedProgram

log = logging.getLogger(__name__)


class Runtimes(NamedTuple):
    """What runs a program.

    Attributes:
        fastest: Runs all images.
        float32: Runs the images again for which the precision of `fastest` may be too low; None if
            that computes in float32.
    """

    fastest: Runtime
    float32: Runtime | None = None


def select_runtimes(
    path: Path, info: ProgramInfo, device: Device, converted_file: bytes | None
) -> Runtimes:
    """Return what runs a program fastest on a device.

    Args:
        path: The program's file.
        info: What is recorded of the program.
        device: Where to run it.
        converted_file: The recorded file of the converted program, whose hash the caller has
            verified; None if there is none.

    Raises:
        DataError: The program or the converted program is not the recorded one, or cannot be
            opened.
        ServiceError: A file cannot be read, or there is too little GPU memory.
    """
    content = program_file.read(path, info)
    runtimes = None
    if device == "cpu" and converted_file is not None:
        runtimes = _try_recorded(converted_file, info)
    if device == "cpu" and runtimes is None:
        runtimes = _try_converting(content, path, info)
    if runtimes is None:
        exported = program_file.deserialize(content, info)
        runtimes = (
            _gpu_runtimes(exported, info)
            if device == "cuda"
            else Runtimes(runtime.TorchRuntime(exported))
        )
    return runtimes


def convert_program(path: Path, info: ProgramInfo) -> bytes | None:
    """Convert a program for OpenVINO, unless it has been converted on this machine before.

    Returns:
        The file of the converted program; None, with a warning, if OpenVINO cannot run it.

    Raises:
        DataError: The program is not the recorded one, or cannot be opened.
        ServiceError: A file cannot be read or written.
    """
    content = program_file.read(path, info)
    try:
        return _convert(content, path, info)
    except NightscoreError:
        raise
    except OSError as error:
        raise ServiceError(
            f"The program of {info.name} cannot be converted: {error}.",
            "Make room in the folder for temporary files.",
        ) from error
    except Exception as error:  # an operation that OpenVINO does not know may raise anything
        log.warning("OpenVINO cannot run %s (%s)", info.name, _first_line(error))
        return None


def check_converted(converted_file: bytes, info: ProgramInfo) -> None:
    """Check that a converted program gives the program's outputs on this machine.

    Raises:
        DataError: It does not, or it is that of another program.
    """
    _open_recorded(converted_file, info)


class _IncompatibleError(DataError):
    """The recorded converted program does not work on this machine."""


def _try_recorded(converted_file: bytes, info: ProgramInfo) -> Runtimes | None:
    """Return what runs the recorded program; None, with a warning, if it does not work here."""
    try:
        return _open_recorded(converted_file, info)
    except _IncompatibleError as error:
        log.warning("%s; it is converted here. %s", error.message.rstrip("."), error.hint)
        return None


def _open_recorded(converted_file: bytes, info: ProgramInfo) -> Runtimes:
    try:
        converted = conversion.unpack(converted_file)
        if converted.program == info.sha256:
            return _openvino_runtimes(converted, info)
    except NightscoreError:
        raise
    except Exception as error:  # another version of OpenVINO may raise anything
        raise _IncompatibleError(
            f"The recorded form of {info.name} does not work with OpenVINO {conversion.version()} "
            f"on this machine ({_first_line(error)}).",
            f"`nightscore models convert {info.model}` converts it again for all machines.",
        ) from error
    raise DataError(
        f"The form for OpenVINO that is recorded of {info.name} is of another program.",
        "Find out by whom it was recorded. "
        f"`nightscore models convert {info.model}` converts it again.",
    )


def _try_converting(content: bytes, path: Path, info: ProgramInfo) -> Runtimes | None:
    """Convert a program and return what runs it; None, with a warning, if OpenVINO cannot."""
    try:
        return _openvino_runtimes(conversion.unpack(_convert(content, path, info)), info)
    except NightscoreError:
        raise
    except Exception as error:  # an operation that OpenVINO does not know may raise anything
        reason = _first_line(error)
        log.warning("OpenVINO cannot run %s (%s); torch does, more slowly", info.name, reason)
        return None


def _gpu_runtimes(exported: "ExportedProgram", info: ProgramInfo) -> Runtimes:
    """Return the runtimes of a program on a GPU, in the requested precision and in float32."""
    from torch.export.passes import move_to_device_pass

    with memory_errors("cuda"):
        streams = cuda_streams()
        # A program exported on a CPU carries its device in its operations.
        moved = move_to_device_pass(exported, "cuda")
    precision = requested_precision()
    fastest = GpuRuntime(moved, info.name, info.input_size, precision, streams)
    if precision == "float32":
        return Runtimes(fastest)
    return Runtimes(fastest, GpuRuntime(moved, info.name, info.input_size, "float32", streams))


def _openvino_runtimes(converted: ConvertedProgram, info: ProgramInfo) -> Runtimes:
    """Return the runtimes of a converted program, after a comparison with torch's outputs."""
    # TF32 is for GPUs.
    precision = "bfloat16" if requested_precision() == "bfloat16" else "float32"
    fastest = converted.runtime(precision, info.input_size)
    float32 = None
    if fastest.precision != "float32":
        float32 = converted.runtime("float32", info.input_size)
    converted.check(float32 or fastest, info.input_size)
    return Runtimes(fastest, float32)


def _convert(content: bytes, path: Path, info: ProgramInfo) -> bytes:
    """Return the file of the converted program, which is kept beside the program's file."""
    cache = path.with_suffix(".openvino.zip")
    with suppress(OSError, ValueError):
        converted_file = cache.read_bytes()
        converted = conversion.unpack(converted_file)
        if (converted.program, converted.openvino) == (info.sha256, conversion.version()):
            return converted_file
    exported = program_file.deserialize(content, info)
    converted_file = conversion.convert(exported, info.sha256, info.input_size)
    try:
        files.atomic_write(cache, converted_file)
    except OSError as error:
        log.warning("The form of %s cannot be kept in %s: %s", info.name, cache.parent, error)
    return converted_file


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
