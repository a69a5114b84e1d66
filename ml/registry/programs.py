"""Exported programs in MLflow: logged by a training run, fetched for a night."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import DataError
from ml.program.device import Device
from ml.program.info import ProgramInfo, sha256
from ml.registry import logged_model, tracking
from ml.registry.artifacts import (
    PROGRAM_INFO,
    SHA256_TAG,
    copy_folder,
    fetch_artifact,
    recorded_program,
    scratch_folder,
)
from ml.registry.client import mlflow_client, mlflow_errors
from ml.registry.converted import fetch_form
from ml.registry.logged_model import signature
from ml.registry.record import load_registration
from ml.registry.rest import server
from ml.settings import state_folder

if TYPE_CHECKING:
    from ml.program.program import Program

if TYPE_CHECKING:
    from ml.models import Network
    from ml.registry.record import Registration


_MODEL = "model"

_PROGRAM_FILE = "data/model.pt2"


def log_program(
    run_id: str, network: "Network", info: ProgramInfo, metadata: Mapping[str, Any]
) -> ProgramInfo:
    """Log a trained network as an exported program (pt2) with signature and input example.

    Returns:
        `info` with the SHA-256 of the stored program.
    """
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature

    from ml.program.program_file import quiet_export

    height, width = info.input_size
    in_text = {part: json.dumps(said) for part, said in signature(info).items() if said}
    # A batch of one would be frozen into the program.
    example = np.zeros((2, 3, height, width), dtype=np.uint8)
    mlflow_client()
    with quiet_export(), mlflow_errors(), mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            network,
            name=_MODEL,
            serialization_format="pt2",
            signature=ModelSignature.from_dict(in_text),
            input_example=example,
            metadata=dict(metadata),
            pip_requirements=_requirements(),
            # It would start a scoring server in this process, which takes one output only.
            validate_serving_input=False,
        )
    path = _of_run(run_id)
    with scratch_folder(path.parent, f"run {run_id}") as scratch:
        fetched = fetch_artifact(logged.model_id, _PROGRAM_FILE, scratch)
        complete = replace(info, sha256=sha256(fetched))
        fetched.replace(path)
    tracking.log_json(run_id, PROGRAM_INFO, asdict(complete) | {"model_id": logged.model_id})
    return complete


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")]


def _of_run(run_id: str) -> Path:
    return state_folder() / "cache" / "runs" / run_id / "model.pt2"


def program_of_run(run_id: str) -> tuple[Path, ProgramInfo]:
    """The program that a training run has logged, before it is registered; it is not opened.

    Raises:
        DataError: MLflow's file is not the one that the run has logged.
        ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    stored = tracking.read_json(run_id, PROGRAM_INFO)
    path, info = _of_run(run_id), program_info(stored)
    if not path.exists():
        with scratch_folder(path.parent, f"run {run_id}") as scratch:
            _program(stored["model_id"], info, scratch).replace(path)
    return path, info


def program_metadata(run_id: str) -> dict[str, Any]:
    """What training recorded with the program that a run has logged."""
    stored = tracking.read_json(run_id, PROGRAM_INFO)
    return dict(logged(stored["model_id"], f"run {run_id}").metadata)


def logged(model_id: str, name: str) -> logged_model.LoggedModel:
    """What MLflow says of a logged model; `name` is the version's, for errors."""
    with tempfile.TemporaryDirectory() as folder:
        return logged_model.read(fetch_artifact(model_id, "MLmodel", Path(folder)), name)


def fetch(registration: "Registration") -> tuple[Path, ProgramInfo]:
    """A registered version's program file and what is recorded of it; the file is not opened.

    A copy is kept in the state folder, and MLflow asked when there is none of this version. What is
    wrong is not kept, so once it is right in MLflow, it can be fetched.

    Raises:
        DataError: the version has no program of ours, or it is not what was registered.
        ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    folder = copy_folder(registration)
    kept = _kept(folder, registration)
    if kept is None:
        with scratch_folder(folder, registration.name) as scratch:
            kept = _fetched(registration, scratch)
            # The description comes last: with it the copy is complete.
            for name in ("model.pt2", PROGRAM_INFO):
                (scratch / name).replace(folder / name)
    return folder / "model.pt2", kept


def _kept(folder: Path, registration: "Registration") -> ProgramInfo | None:
    """What is recorded of the copy in a folder; None when it is of another program, or there is
    none.
    """
    path = folder / PROGRAM_INFO
    if not path.exists() or not (folder / "model.pt2").exists():
        return None
    try:
        info = program_info(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}).", "It is fetched again when its folder is removed."
        ) from error
    if info.sha256 != registration.sha256:
        return None
    registration.check(info, str(path))
    return info


def _fetched(registration: "Registration", scratch: Path) -> ProgramInfo:
    """Fetch a version from MLflow into a folder, and compare it with what was registered."""
    model, version = registration.model, registration.version
    found = server().version(model, version)
    recorded = found.tags.get(SHA256_TAG)
    if recorded is None:
        raise DataError(f"{model}/{version} was not registered by Nightscore: it has no SHA-256.")
    stored = recorded_program(found.run_id, scratch)
    where = f"MLflow's run {found.run_id}"
    registration.check(program_info(stored | {"model": model, "version": version}), where)
    info = program_info(stored | {"model": model, "version": version, "sha256": recorded})
    registration.check(info, f"MLflow's tag {SHA256_TAG}")
    logged(stored["model_id"], info.name).check(info)
    _program(stored["model_id"], info, scratch).replace(scratch / "model.pt2")
    described = asdict(info) | {"model_id": stored["model_id"]}
    (scratch / PROGRAM_INFO).write_text(json.dumps(described), encoding="utf-8")
    return info


def _program(model_id: str, info: ProgramInfo, scratch: Path) -> Path:
    """Fetch a logged model's program into a folder; raises DataError when it is another file."""
    path = fetch_artifact(model_id, _PROGRAM_FILE, scratch)
    if (found := sha256(path)) != info.sha256:
        raise DataError(
            f"MLflow's program of {info.name} has SHA-256 {found}, recorded is {info.sha256}.",
            "The artifact was changed or damaged; restore it, or promote another version.",
        )
    return path


def program_info(stored: Mapping[str, Any]) -> ProgramInfo:
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


def load(model: str, version: int, device: Device) -> "Program":
    """The program of a registered version, on a device; on this machine a copy is kept. For a CPU
    its recorded form for OpenVINO is fetched, too.

    Raises:
        DataError: the version is not registered, its program, its form or what is recorded of it
            was changed, or they do not fit each other.
        ServiceError: Postgres or MLflow failed, or there is no room for a copy.
    """
    from ml.program.program import Program

    registration = load_registration(model, version)
    path, info = fetch(registration)
    form = fetch_form(registration) if device == "cpu" else None
    return Program.load(path, info, device, form)
