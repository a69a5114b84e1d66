"""MLflow's model registry: exported programs, versions and the aliases that name them."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ml import tracking
from ml.config import NAME
from ml.errors import DataError
from ml.program import ProgramInfo, quiet_export, sha256
from ml.settings import settings, state_folder

if TYPE_CHECKING:
    from ml.models import Network

_MODEL = "model"
_PROGRAM_FILE = "data/model.pt2"
_PROGRAM_INFO = "program.json"
_SHA256 = "nightscore.sha256"
# What MLflow's tables have room for.
_LONGEST_TAG = _LONGEST_DESCRIPTION = 5000


def log_program(
    run_id: str, network: "Network", info: ProgramInfo, metadata: Mapping[str, Any]
) -> ProgramInfo:
    """Log a trained network as an exported program (pt2) with signature and input example.

    Returns
    -------
    `info` with the SHA-256 of the stored program.
    """
    import mlflow
    import numpy as np

    height, width = info.input_size
    # A batch of one would be frozen into the program.
    example = np.zeros((2, 3, height, width), dtype=np.uint8)
    tracking.mlflow_client()
    with quiet_export(), tracking.translated(), mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            network,
            name=_MODEL,
            serialization_format="pt2",
            signature=_signature(info),
            input_example=example,
            metadata=dict(metadata),
            pip_requirements=_requirements(),
            # It would start a scoring server in this process, which takes one output only.
            validate_serving_input=False,
        )
    path = _cached_program(run_id)
    _download(logged.model_id, path)
    complete = replace(info, sha256=sha256(path))
    tracking.log_json(run_id, _PROGRAM_INFO, asdict(complete) | {"model_id": logged.model_id})
    return complete


def _signature(info: ProgramInfo) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    height, width = info.input_size
    # Without a name, so that MLflow serves a plain array.
    pixels = TensorSpec(np.dtype("uint8"), (-1, 3, height, width))
    single = np.dtype("float32")
    if info.task == "classification":
        outputs = [TensorSpec(single, (-1, len(info.classes)), "probabilities")]
    else:
        outputs = [
            TensorSpec(single, (-1,), "scores"),
            TensorSpec(single, (-1, -1, -1), "heatmaps"),
        ]
        if info.novelty_threshold is not None:
            outputs.append(TensorSpec(single, (-1,), "novelties"))
    return ModelSignature(Schema([pixels]), Schema(outputs))


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")]


def _cached_program(run_id: str) -> Path:
    folder = state_folder() / "cache" / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "model.pt2"


def program_of_run(run_id: str) -> tuple[Path, ProgramInfo]:
    """The program that a training run has logged, before it is registered."""
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    path = _cached_program(run_id)
    if not path.exists():
        _download(stored["model_id"], path)
    return path, _info(stored)


def program_metadata(run_id: str) -> dict[str, Any]:
    """What training recorded with the program that a run has logged."""
    import mlflow

    tracking.mlflow_client()
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    # MLflow's get_model_info leaves what it downloads in the folder for temporary files.
    with tempfile.TemporaryDirectory() as folder, tracking.translated():
        described = mlflow.models.Model.load(_artifact(stored["model_id"], "MLmodel", folder))
        return dict(described.metadata or {})


def register(run_id: str, model: str, tags: Mapping[str, str], description: str) -> int:
    """Register a run's program as a version of a model; returns its number.

    A run is registered once: a retry finds the version and writes its tags again.
    """
    import mlflow

    client = tracking.mlflow_client()
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    complete = {**tags, _SHA256: stored["sha256"]}
    tagged = {key: value[:_LONGEST_TAG] for key, value in complete.items()}
    with tracking.translated():
        version = _version_of_run(model, run_id)
        if version is None:
            # With its tags from the start: nobody ever sees a version without a decision.
            made = mlflow.register_model(f"models:/{stored['model_id']}", model, tags=tagged)
            version = int(made.version)
        else:
            for key, value in tagged.items():
                client.set_model_version_tag(model, str(version), key, value)
        client.update_model_version(model, str(version), description[:_LONGEST_DESCRIPTION])
    return version


def _version_of_run(model: str, run_id: str) -> int | None:
    found = tracking.mlflow_client().search_model_versions(_named(model))
    return next((int(v.version) for v in found if v.run_id == run_id), None)


def _named(model: str) -> str:
    """MLflow's filter for a model's versions. It has no parameters, so the name is checked."""
    if not re.fullmatch(NAME, model):
        raise DataError(
            f"{model!r} is not the name of a model.", "`nightscore models` lists the models."
        )
    return f"name = '{model}'"


def version_of_alias(model: str, alias: str) -> int | None:
    """The version an alias names; None when the model or the alias is not there."""
    client = tracking.mlflow_client()
    from mlflow.exceptions import MlflowException

    with tracking.translated():
        try:
            return int(client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def versions(model: str) -> list[int]:
    """The registered versions of a model, in order; raises DataError for an impossible name."""
    client = tracking.mlflow_client()
    with tracking.translated():
        return sorted(int(v.version) for v in client.search_model_versions(_named(model)))


def set_alias(model: str, alias: str, version: int) -> None:
    """Let an alias name a version."""
    client = tracking.mlflow_client()
    with tracking.translated():
        client.set_registered_model_alias(model, alias, str(version))


def ui_url(model: str, version: int) -> str:
    """The version's page in MLflow."""
    return f"{settings().mlflow_uri.rstrip('/')}/#/models/{quote(model)}/versions/{version}"


def fetch(model: str, version: int, expected_sha256: str | None = None) -> tuple[Path, ProgramInfo]:
    """A version's program file and what is recorded of it; the file is not opened.

    A copy is kept in the state folder. When `expected_sha256` (from our own tables) is that of
    the copy, MLflow is not asked.

    Raises
    ------
    DataError: the version has no program of ours.
    ServiceError: MLflow cannot be reached.
    """
    folder = state_folder() / "cache" / "programs" / model / str(version)
    path, described = folder / "model.pt2", folder / _PROGRAM_INFO
    if expected_sha256 and path.exists() and described.exists():
        kept = _info(json.loads(described.read_text(encoding="utf-8")))
        if kept.sha256 == expected_sha256:
            return path, kept
    client = tracking.mlflow_client()
    with tracking.translated():
        found = client.get_model_version(model, str(version))
    recorded = found.tags.get(_SHA256)
    if recorded is None:
        raise DataError(f"{model}/{version} was not registered by Nightscore: it has no SHA-256.")
    stored = tracking.read_json(found.run_id, _PROGRAM_INFO)
    stored |= {"model": model, "version": version, "sha256": recorded}
    folder.mkdir(parents=True, exist_ok=True)
    _download(stored["model_id"], path)
    partial = described.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(stored), encoding="utf-8")
    partial.replace(described)
    return path, _info(stored)


def _download(model_id: str, path: Path) -> None:
    """Fetch a logged model's program to `path`, whole or not at all, whoever else does the same."""
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as folder,
        tracking.translated(),
    ):
        Path(_artifact(model_id, _PROGRAM_FILE, folder)).replace(path)


def _artifact(model_id: str, name: str, folder: str) -> str:
    """Fetch a file of a logged model into a folder; returns its path."""
    import mlflow

    location = tracking.mlflow_client().get_logged_model(model_id).artifact_location
    found: str = mlflow.artifacts.download_artifacts(f"{location}/{name}", dst_path=folder)
    return found


def _info(stored: Mapping[str, Any]) -> ProgramInfo:
    return ProgramInfo(
        model=stored["model"],
        version=stored["version"],
        task=stored["task"],
        classes=tuple(stored["classes"]),
        input_size=(stored["input_size"][0], stored["input_size"][1]),
        threshold=stored["threshold"],
        sha256=stored["sha256"],
        synthetic=stored["synthetic"],
        # What was stored before there was a novelty has none.
        novelty_threshold=stored.get("novelty_threshold"),
    )
