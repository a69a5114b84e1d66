"""What MLflow's file `MLmodel` says of a program: its signature, and what training recorded with
it.

The file is YAML and the signature in it JSON, so both are read and compared without MLflow's
library, which takes seconds to import (https://mlflow.org/docs/latest/ml/model/#mlmodel-file).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml.errors import DataError
from ml.program.info import CLASSIFICATION, ProgramInfo

# Ours have a few kilobytes, most of them names of classes.
_MOST_BYTES = 4 * 2**20
# An alias in YAML counts as all that it stands for.
_MOST_VALUES, _MOST_DEPTH = 200_000, 50
_LONGEST_SHOWN = 500
# What is recorded of a program in both places.
_IN_BOTH = ("task", "classes", "input_size", "threshold", "novelty_threshold", "synthetic")

Tensor = dict[str, Any]


@dataclass(frozen=True)
class LoggedModel:
    """A logged model's signature, as `signature` has it, and its metadata."""

    signature: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def check(self, info: ProgramInfo) -> None:
        """Raise DataError unless signature and metadata say what is recorded."""
        wanted = signature(info)
        if self.signature != wanted:
            raise DataError(
                f"MLflow's signature of {info.name} is {_shown(self.signature)}; its task, "
                f"classes and input size need {_shown(wanted)}.",
                "Train the version again, or promote another one.",
            )
        said = dict(self.metadata)
        if isinstance(threshold := said.get("threshold"), dict):
            said["threshold"] = threshold.get("value")
        recorded = asdict(info)
        for name in _IN_BOTH:
            expected = recorded[name]
            expected = list(expected) if isinstance(expected, tuple) else expected
            if name in said and said[name] != expected:
                raise DataError(
                    f"MLflow's metadata of {info.name} has {name} {_shown(said[name])}; recorded "
                    f"is {_shown(expected)}.",
                    "Train the version again, or promote another one.",
                )


def signature(info: ProgramInfo) -> dict[str, list[Tensor] | None]:
    """Inputs and outputs that a program with this record has, in MLflow's JSON form."""
    height, width = info.input_size
    # Without a name, so that MLflow serves a plain array.
    pixels = _tensor("uint8", -1, 3, height, width)
    if info.task == CLASSIFICATION:
        outputs = [_tensor("float32", -1, len(info.classes), name="probabilities")]
    else:
        outputs = [
            _tensor("float32", -1, name="scores"),
            _tensor("float32", -1, -1, -1, name="heatmaps"),
        ]
        if info.novelty_threshold is not None:
            outputs.append(_tensor("float32", -1, name="novelties"))
    return {"inputs": [pixels], "outputs": outputs, "params": None}


def _tensor(kind: str, *shape: int, name: str = "") -> Tensor:
    described = {"type": "tensor", "tensor-spec": {"dtype": kind, "shape": list(shape)}}
    return {"name": name, **described} if name else described


def read(path: Path, name: str) -> LoggedModel:
    """Read an `MLmodel`; `name` is the version's, for errors.

    Raises:
        DataError: it is no such file, or far larger than one.
    """
    try:
        found = _plain(_loaded(path))
        said = found.get("signature") or {}
        described = {part: _json(said.get(part)) for part in ("inputs", "outputs", "params")}
        metadata = found.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no mapping")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_SHOWN]
        raise DataError(
            f"MLflow's file MLmodel of {name} cannot be read: {reason}.",
            "Train the version again, or promote another one.",
        ) from error
    return LoggedModel(described, metadata)


def _loaded(path: Path) -> Any:
    # As MLflow writes it: ruamel takes some of PyYAML's words for numbers, such as `1e5`.
    import yaml

    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    try:
        return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _plain(document: Any) -> Any:
    """The document as a tree; raises ValueError when it is a large one."""
    left = _MOST_VALUES

    def copied(node: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MOST_DEPTH:
            raise ValueError("it holds too many values, or is nested too deep")
        if isinstance(node, dict):
            return {str(key): copied(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [copied(value, depth + 1) for value in node]
        return node

    return copied(document, 0)


def _json(text: Any) -> Any:
    return None if text is None else json.loads(text)


def _shown(value: Any) -> str:
    text = "missing" if value is None else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
