"""The file of an exported program (`.pt2`): written, read, verified and opened.

https://docs.pytorch.org/docs/stable/export.html describes exported programs.
"""

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ml.errors import ConfigurationError, DataError, ServiceError
from ml.program import archive_check
from ml.program.info import ProgramInfo

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

# torch cannot read two programs at a time ("_CURRENT_DESERIALIZER is already set").
_DESERIALIZING = threading.Lock()


def export(network: "torch.nn.Module", path: Path, input_size: tuple[int, int]) -> None:
    """Export a network's `forward` to a file, as MLflow does for a training run.

    Args:
        network: Takes uint8 pixels (B, 3, H, W), for any B.
        path: The file to write.
        input_size: Height and width of the images in pixels.
    """
    import torch

    height, width = input_size
    # torch.export would take a batch of one for a constant.
    example = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    exported = torch.export.export(
        network.eval().cpu(), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    with quiet_export():
        torch.export.save(exported, path)


@contextmanager
def quiet_export() -> Iterator[None]:
    """Suppress torch's warning about weights in channels-last order, which are exported whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        yield


def read(path: Path, info: ProgramInfo) -> bytes:
    """Read a program's file, and verify that it is the recorded one.

    The file is read once, so nobody can change it between this check and its use.

    Raises:
        DataError: Its SHA-256 is not the recorded one, or it is too large.
        ServiceError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(archive_check.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ServiceError(
            f"The program of {info.name} cannot be read: {error}.",
            "It is fetched again when its folder is removed.",
        ) from error
    if len(content) > archive_check.MAX_FILE_BYTES:
        raise DataError(
            f"The program of {info.name} has more than {archive_check.MAX_FILE_BYTES} bytes."
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != info.sha256:
        raise DataError(
            f"The program of {info.name} has SHA-256 {sha256}, recorded is {info.sha256}.",
            f"{path} was changed or damaged. Find out by whom; when its folder is removed, it is "
            "fetched again. Or promote another version.",
        )
    return content


def deserialize(content: bytes, info: ProgramInfo) -> "ExportedProgram":
    """Turn a program's file into a program of torch, after `ml.program.archive_check`.

    Raises:
        DataError: The file could run code when it is opened, or it is not an exported program.
        ConfigurationError: torch is not installed.
    """
    _require_torch(info)
    try:
        sanitized = archive_check.sanitize(content)
    except ValueError as error:
        raise DataError(
            f"The program of {info.name} is not opened: {error}.",
            "What a program may consist of is in ml/program/archive_check.py.",
        ) from error
    import torch

    try:
        with _DESERIALIZING:
            return torch.export.load(io.BytesIO(sanitized))
    except Exception as error:
        raise DataError(f"The program of {info.name} cannot be opened: {error}") from error


def _require_torch(info: ProgramInfo) -> None:
    if find_spec("torch") is None:
        raise ConfigurationError(
            f"{info.name} has no recorded form for CPUs that works here, and torch, which would "
            "run it or make that form, is not installed.",
            f"Run `nightscore models convert {info.model}` where torch is installed, such as in "
            "the image `trainer`. Then every worker fetches the form.",
        )
