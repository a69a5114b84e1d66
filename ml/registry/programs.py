"""Exported programs in MLflow: logged by a training run, fetched and loaded to score a night."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import DataError
from ml.program.device import Device
from ml.program.info import ProgramInfo, sha256
from ml.registry import cache, logged_model, tracking
from ml.registry.artifacts import (
    PROGRAM_INFO,
    SHA256_TAG,
    cache_folder,
    download_artifact,
    download_program_info,
    scratch_folder,
)
from ml.registry.client import mlflow_client, mlflow_errors
from ml.registry.logged_model import LoggedModel, signature
from ml.registry.openvino_models import fetch_openvino_model
from ml.registry.registration import Registration, load_registration
from ml.registry.server import mlflow_api

if TYPE_CHECKING:
    from ml.models import Network
    from ml.program.program import Program

_ARTIFACT_NAME = "model"
_PROGRAM_ARTIFACT = "data/model.pt2"
_PROGRAM_FILE = "model.pt2"


def log_program(
    run_id: str, network: "Network", info: ProgramInfo, metadata: Mapping[str, Any]
) -> ProgramInfo:
    """Export a trained network and log it to MLflow with its signature and an input example.

    Args:
        run_id: the training run.
        network: the trained network; its `forward` takes uint8 pixels (B, 3, H, W).
        info: what is known of the program, without its hash.
        metadata: what training wants to record with the program, in a JSON form.

    Returns:
        `info` with the SHA-256 of the stored program.

    Raises:
        ServiceError: MLflow cannot be reached, or there is no room for the cached file.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature

    from ml.program.program_file import quiet_export

    height, width = info.input_size
    signature_json = {part: json.dumps(specs) for part, specs in signature(info).items() if specs}
    # With a batch of one, the export would fix the batch size to one.
    example = np.zeros((2, 3, height, width), dtype=np.uint8)
    mlflow_client()
    with quiet_export(), mlflow_errors(), mlflow.start_run(run_id=run_id):
        model_info = mlflow.pytorch.log_model(
            network,
            name=_ARTIFACT_NAME,
            serialization_format="pt2",
            signature=ModelSignature.from_dict(signature_json),
            input_example=example,
            metadata=dict(metadata),
            pip_requirements=_requirements(),
            # It would start a scoring server in this process, which takes one output only.
            validate_serving_input=False,
        )
    path = _run_cache_path(run_id)
    cache.hold(path.parent)
    with cache.fetching(path.parent), scratch_folder(path.parent, f"run {run_id}") as scratch:
        program = download_artifact(model_info.model_id, _PROGRAM_ARTIFACT, scratch)
        info = replace(info, sha256=sha256(program))
        program.replace(path)
    tracking.log_json(run_id, PROGRAM_INFO, asdict(info) | {"model_id": model_info.model_id})
    return info


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")]


def _run_cache_path(run_id: str) -> Path:
    return cache.run_entry(run_id) / _PROGRAM_FILE


def fetch_from_run(run_id: str) -> tuple[Path, ProgramInfo]:
    """Return the program that a training run has logged, before it is registered.

    Returns:
        The path of the cached program, which is not opened, and its description.

    Raises:
        DataError: the file in MLflow is not the one that the run has logged.
        ServiceError: MLflow cannot be reached, or there is no room for the cached file.
    """
    document = tracking.read_json(run_id, PROGRAM_INFO)
    path, info = _run_cache_path(run_id), parse_program_info(document)
    cache.hold(path.parent)
    if not path.exists():
        with cache.fetching(path.parent):
            if not path.exists():  # another process may have fetched it while this one waited
                with scratch_folder(path.parent, f"run {run_id}") as scratch:
                    _download_program(document["model_id"], info, scratch).replace(path)
    return path, info


def program_metadata(run_id: str) -> dict[str, Any]:
    """Return the metadata that training recorded with the program of a run."""
    document = tracking.read_json(run_id, PROGRAM_INFO)
    return dict(read_logged_model(document["model_id"], f"run {run_id}").metadata)


def read_logged_model(model_id: str, name: str) -> LoggedModel:
    """Download and parse the file `MLmodel` of a logged model.

    Args:
        model_id: the MLflow id of the logged model.
        name: what the model belongs to, for messages, such as "shades/3".

    Raises:
        DataError: the file cannot be parsed.
        ServiceError: MLflow cannot be reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        return logged_model.read(download_artifact(model_id, "MLmodel", Path(folder)), name)


def fetch(registration: Registration) -> tuple[Path, ProgramInfo]:
    """Return a registered version's program, from this machine's cache or from MLflow.

    A program that is not what was registered is not cached. It can be fetched as soon as MLflow has
    the right one again. The cached files stay for as long as this process lives.

    Returns:
        The path of the cached program, which is not opened, and its description.

    Raises:
        DataError: the version has no program that Nightscore registered, or it is not what was
            registered.
        ServiceError: MLflow cannot be reached, or there is no room for the cached files.
    """
    folder = cache_folder(registration)
    cache.hold(folder)
    info = _cached_info(folder, registration)
    if info is None:
        with cache.fetching(folder):
            # Another process may have fetched it while this one waited.
            info = _cached_info(folder, registration) or _fetch_to_cache(folder, registration)
    return folder / _PROGRAM_FILE, info


def _fetch_to_cache(folder: Path, registration: Registration) -> ProgramInfo:
    with scratch_folder(folder, registration.name) as scratch:
        info = _download(registration, scratch)
        # The description comes last: where it is, the cached program is complete.
        for name in (_PROGRAM_FILE, PROGRAM_INFO):
            (scratch / name).replace(folder / name)
    return info


def _cached_info(folder: Path, registration: Registration) -> ProgramInfo | None:
    """The description of the cached program; None when the version's program is not cached."""
    path = folder / PROGRAM_INFO
    if not path.exists() or not (folder / _PROGRAM_FILE).exists():
        return None
    try:
        info = parse_program_info(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}).", "It is fetched again when its folder is removed."
        ) from error
    if info.sha256 != registration.sha256:
        return None
    registration.check(info, str(path))
    return info


def _download(registration: Registration, scratch: Path) -> ProgramInfo:
    """Download a version's files from MLflow and compare them with what was registered."""
    model, version = registration.model, registration.version
    version_info = mlflow_api().get_version(model, version)
    tagged_sha256 = version_info.tags.get(SHA256_TAG)
    if tagged_sha256 is None:
        raise DataError(f"{model}/{version} was not registered by Nightscore: it has no SHA-256.")
    document = download_program_info(version_info.run_id, scratch)
    model_id = document["model_id"]
    document |= {"model": model, "version": version}
    registration.check(parse_program_info(document), f"MLflow's run {version_info.run_id}")
    info = parse_program_info(document | {"sha256": tagged_sha256})
    registration.check(info, f"MLflow's tag {SHA256_TAG}")
    read_logged_model(model_id, info.name).check(info)
    _download_program(model_id, info, scratch).replace(scratch / _PROGRAM_FILE)
    content = json.dumps(asdict(info) | {"model_id": model_id})
    (scratch / PROGRAM_INFO).write_text(content, encoding="utf-8")
    return info


def _download_program(model_id: str, info: ProgramInfo, scratch: Path) -> Path:
    """Download a logged model's program.

    Raises:
        DataError: its hash is not the recorded one.
    """
    path = download_artifact(model_id, _PROGRAM_ARTIFACT, scratch)
    if (actual := sha256(path)) != info.sha256:
        raise DataError(
            f"MLflow's program of {info.name} has SHA-256 {actual}, recorded is {info.sha256}.",
            "The artifact was changed or damaged; restore it, or promote another version.",
        )
    return path


def parse_program_info(document: Mapping[str, Any]) -> ProgramInfo:
    """Read a program's description from the JSON of `program.json`.

    Raises:
        KeyError: a field is missing.
        TypeError: the document is no object, or a field has a wrong type.
    """
    return ProgramInfo(
        model=document["model"],
        version=document["version"],
        task=document["task"],
        classes=tuple(document["classes"]),
        input_size=(document["input_size"][0], document["input_size"][1]),
        threshold=document["threshold"],
        sha256=document["sha256"],
        synthetic=document["synthetic"],
        # Programs from before novelty was measured have no such field.
        novelty_threshold=document.get("novelty_threshold"),
    )


def load(model: str, version: int, device: Device) -> "Program":
    """Load the program of a registered version.

    The program and, for a CPU, its recorded OpenVINO form come from this machine's cache or from
    MLflow.

    Raises:
        DataError: the version is not registered, its program, its form or its description is not
            what was registered, or they do not match each other.
        ServiceError: Postgres or MLflow failed, or there is no room for the cached files.
    """
    from ml.program.program import Program

    registration = load_registration(model, version)
    path, info = fetch(registration)
    converted = fetch_openvino_model(registration) if device == "cpu" else None
    return Program.load(path, info, device, converted)
