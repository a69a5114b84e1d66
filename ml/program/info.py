"""What is recorded of an exported program, and the hash of its file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

CLASSIFICATION, ANOMALY = "classification", "anomaly"
# The classes of the task anomaly, in the order of their labels.
NORMAL, ANOMALOUS = "normal", "anomalous"


@dataclass(frozen=True)
class ConvertedInfo:
    """What is recorded of a program converted for OpenVINO (`ml.program.conversion`).

    Attributes:
        sha256: SHA-256 of its file.
        openvino: Version of OpenVINO that converted it.
    """

    sha256: str
    openvino: str


@dataclass(frozen=True)
class ProgramInfo:
    """What is recorded of a program beside its file.

    Attributes:
        model: Name of the model.
        version: Its version; None before registration.
        task: `CLASSIFICATION` or `ANOMALY`.
        classes: Names of the classes, in the order of the outputs.
        input_size: Height and width in pixels.
        threshold: For the task anomaly: scores of at least this value are flagged.
        sha256: SHA-256 of the program's file.
        synthetic: Whether it was trained on the built-in synthetic samples.
        novelty_threshold: If the program measures novelty: images of at least this novelty are
            marked for review.
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
        """MODEL/VERSION, or MODEL before registration."""
        return f"{self.model}/{self.version}" if self.version else self.model


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
