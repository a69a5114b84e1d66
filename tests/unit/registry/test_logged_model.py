"""MLflow's file MLmodel: read as MLflow itself reads it, without running code in it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from ml.errors import DataError
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo
from ml.registry import logged_model

# Texts that other YAML parsers read as numbers, dates or booleans.
ODD = ("1e5", "12e4", "0o17", "017", "on", "y", "1_000", "1:20", "2026-01-01", "null", "~", "é")


def _info(task: str = CLASSIFICATION, **other) -> ProgramInfo:
    classes = ODD if task == CLASSIFICATION else ("normal", "anomalous")
    threshold = None if task == CLASSIFICATION else 1e-05
    fields = {"novelty_threshold": None} | other
    return ProgramInfo("m", 1, task, classes, (16, 24), threshold, "0" * 64, **fields)


def _specs(info: ProgramInfo) -> ModelSignature:
    single = np.dtype("float32")
    pixels = TensorSpec(np.dtype("uint8"), (-1, 3, *info.input_size))
    if info.task == CLASSIFICATION:
        outputs = [TensorSpec(single, (-1, len(info.classes)), "probabilities")]
    else:
        outputs = [
            TensorSpec(single, (-1,), "scores"),
            TensorSpec(single, (-1, -1, -1), "heatmaps"),
        ]
        if info.novelty_threshold is not None:
            outputs.append(TensorSpec(single, (-1,), "novelties"))
    return ModelSignature(Schema([pixels]), Schema(outputs))


def _write(path: Path, info: ProgramInfo, **metadata) -> Path:
    """The file as MLflow writes it."""
    recorded = {
        "task": info.task,
        "classes": list(info.classes),
        "input_size": list(info.input_size),
        "threshold": {"value": info.threshold} if info.threshold else None,
    }
    Model(signature=_specs(info), metadata=recorded | metadata).save(str(path))
    return path


INFOS = [_info(), _info(ANOMALY), _info(ANOMALY, novelty_threshold=0.5)]


@pytest.mark.parametrize("info", INFOS, ids=["classes", "anomaly", "novelty"])
def test_what_mlflow_writes_fits_and_mlflow_reads_the_same(info, tmp_path):
    path = _write(tmp_path / "MLmodel", info)
    logged = logged_model.read(path, "m/1")
    logged.check(info)
    theirs = Model.load(str(path))
    assert logged.metadata == theirs.metadata
    assert theirs.signature == _specs(info)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (_info(ANOMALY), "signature of m/1"),
        (_info(ANOMALY, novelty_threshold=0.4), "novelty_threshold 0.5; recorded is 0.4"),
    ],
)
def test_what_does_not_fit_the_record_is_named(other, reason, tmp_path):
    info = _info(ANOMALY, novelty_threshold=0.5)
    path = _write(tmp_path / "MLmodel", info, novelty_threshold=0.5)
    with pytest.raises(DataError, match=reason):
        logged_model.read(path, "m/1").check(other)


def _bomb() -> str:
    lines = (f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    return "\n".join(["metadata:", "  a0: &a0 [x, x, x, x]", *lines])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "a: [",
        "signature: {inputs: '[', outputs: '[]'}",
        "signature: 7",
        "metadata: [1]",
        "metadata: &a [*a]",
        _bomb(),
        "signature: {inputs: '" + "[" * 100_000 + "'}",
        "#" * (5 * 2**20),
    ],
    ids=["empty", "list", "cut", "JSON", "number", "metadata", "circle", "bomb", "deep", "large"],
)
def test_a_file_of_another_kind_is_refused(text, tmp_path):
    path = tmp_path / "MLmodel"
    path.write_text(text)
    with pytest.raises(DataError, match="MLmodel of m/1 cannot be read"):
        logged_model.read(path, "m/1")


def test_a_file_runs_no_code(tmp_path):
    path, mark = tmp_path / "MLmodel", tmp_path / "ran"
    path.write_text(f"metadata: !!python/object/apply:pathlib.Path.touch [{str(mark)!r}]\n")
    with pytest.raises(DataError, match="cannot be read"):
        logged_model.read(path, "m/1")
    assert not mark.exists()


def test_it_is_read_without_mlflow(tmp_path):
    path = _write(tmp_path / "MLmodel", INFOS[0])
    assert yaml.safe_load(path.read_text())["signature"]
    code = f"""
import sys
from pathlib import Path
from ml.registry import logged_model
logged_model.read(Path({str(path)!r}), "m/1")
print(*sorted({{"mlflow", "numpy", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
