"""MLflow's file `MLmodel`: the signature of a program, and the metadata recorded with it.

The file is YAML, and the signature in it is JSON. Both are read and compared without MLflow's
library, which takes seconds to import (https://mlflow.org/docs/latest/ml/model/#mlmodel-file).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml.errors import DataError
from ml.program.info import CLASSIFICATION, ProgramInfo

# Nightscore's own files have a few kilobytes, most of them names of classes.
_MAX_BYTES = 4 * 2**20
# A YAML alias counts as everything that it stands for.
_MAX_NODES, _MAX_DEPTH = 200_000, 50
_MAX_SHOWN_LENGTH = 500
# The fields that both `program.json` and the metadata may have.
_COMMON_FIELDS = ("task", "classes", "input_size", "threshold", "novelty_threshold", "synthetic")

TensorSpec = dict[str, Any]


@dataclass(frozen=True)
class LoggedModel:
    """A logged model as its `MLmodel` describes it.

    Attributes:
        signature: its inputs and outputs, in the form of `signature`.
        metadata: what training recorded with it.
    """

    signature: Mapping[str, Any]
    metadata: Mapping[str, Any]

    def check(self, info: ProgramInfo) -> None:
        """Compare the signature and the metadata with what is recorded of the program.

        Raises:
            DataError: they contradict the record.
        """
        expected_signature = signature(info)
        if self.signature != expected_signature:
            raise DataError(
                f"MLflow's signature of {info.name} is {_shown(self.signature)}; its task, "
                f"classes and input size need {_shown(expected_signature)}.",
                "Train the version again, or promote another one.",
            )
        metadata = dict(self.metadata)
        if isinstance(threshold := metadata.get("threshold"), dict):
            metadata["threshold"] = threshold.get("value")
        recorded = asdict(info)
        for name in _COMMON_FIELDS:
            expected = recorded[name]
            expected = list(expected) if isinstance(expected, tuple) else expected
            if name in metadata and metadata[name] != expected:
                raise DataError(
                    f"MLflow's metadata of {info.name} has {name} {_shown(metadata[name])}; "
                    f"recorded is {_shown(expected)}.",
                    "Train the version again, or promote another one.",
                )


def signature(info: ProgramInfo) -> dict[str, list[TensorSpec] | None]:
    """Return the inputs and outputs of a program with this description, in MLflow's JSON form."""
    height, width = info.input_size
    # The input has no name, so MLflow serves it as a plain array.
    pixels = _tensor_spec("uint8", -1, 3, height, width)
    if info.task == CLASSIFICATION:
        outputs = [_tensor_spec("float32", -1, len(info.classes), name="probabilities")]
    else:
        outputs = [
            _tensor_spec("float32", -1, name="scores"),
            _tensor_spec("float32", -1, -1, -1, name="heatmaps"),
        ]
        if info.novelty_threshold is not None:
            outputs.append(_tensor_spec("float32", -1, name="novelties"))
    return {"inputs": [pixels], "outputs": outputs, "params": None}


def _tensor_spec(dtype: str, *shape: int, name: str = "") -> TensorSpec:
    spec = {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}
    return {"name": name, **spec} if name else spec


def read(path: Path, name: str) -> LoggedModel:
    """Read an `MLmodel`.

    Args:
        path: the file.
        name: what the model belongs to, for messages, such as "shades/3".

    Raises:
        DataError: the file is not an `MLmodel`, or far larger than one.
    """
    try:
        document = _plain(_load_yaml(path))
        parts = document.get("signature") or {}
        signature_json = {part: _json(parts.get(part)) for part in ("inputs", "outputs", "params")}
        metadata = document.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no mapping")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:_MAX_SHOWN_LENGTH]
        raise DataError(
            f"MLflow's file MLmodel of {name} cannot be read: {reason}.",
            "Train the version again, or promote another one.",
        ) from error
    return LoggedModel(signature_json, metadata)


def _load_yaml(path: Path) -> Any:
    # PyYAML, as MLflow uses it: ruamel reads some words that PyYAML writes, such as `1e5`, as
    # numbers.
    import yaml

    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES} bytes")
    try:
        return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _plain(document: Any) -> Any:
    """The document with its aliases expanded; raises ValueError when it is too large."""
    nodes = 0

    def expand(node: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ValueError("it holds too many values, or is nested too deep")
        if isinstance(node, dict):
            return {str(key): expand(value, depth + 1) for key, value in node.items()}
        if isinstance(node, list):
            return [expand(value, depth + 1) for value in node]
        return node

    return expand(document, 0)


def _json(text: Any) -> Any:
    return None if text is None else json.loads(text)


def _shown(value: Any) -> str:
    """A value for a message, on one line and not too long."""
    text = "missing" if value is None else " ".join(repr(value).split())
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}..."
