"""What is recorded of an exported program, and the hash of its file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

CLASSIFICATION, ANOMALY = "classification", "anomaly"
# The classes of the task anomaly, in the order in which a data set counts them.
NORMAL, ANOMALOUS = "normal", "anomalous"


@dataclass(frozen=True)
class ConvertedInfo:
    """What is recorded of a program's form for OpenVINO (`ml.program.conversion`): the SHA-256 of
    its file, and the version of OpenVINO that made it.
    """

    sha256: str
    openvino: str


@dataclass(frozen=True)
class ProgramInfo:
    """What is recorded of a program beside its file.

    `input_size` is (height, width) in pixels; `threshold` is set for the task `anomaly`, and
    `novelty_threshold` where the program gives novelties; `version` is None before registration.
    """

    model: str
    version: int | None
    task: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    threshold: float | None
    sha256: str
    synthetic: bool = False
    novelty_threshold: float | None = None

    @property
    def name(self) -> str:
        return f"{self.model}/{self.version}" if self.version else self.model


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
