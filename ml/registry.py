"""MLflow's model registry: exported programs, versions and the aliases that name them."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ml import files, logged_model, tracking
from ml.config import NAME
from ml.errors import DataError, ServiceError
from ml.logged_model import signature
from ml.mlflow_rest import server
from ml.program_info import ConvertedInfo, ProgramInfo, sha256
from ml.settings import settings, state_folder

if TYPE_CHECKING:
    from ml.models import Network
    from ml.registration import Registration

_MODEL = "model"
_PROGRAM_FILE = "data/model.pt2"
_PROGRAM_INFO = "program.json"
_SHA256 = "nightscore.sha256"
_NO_ROOM = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}
_FORM = "openvino"
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
    from mlflow.models import ModelSignature

    from ml.program import quiet_export

    height, width = info.input_size
    in_text = {part: json.dumps(said) for part, said in signature(info).items() if said}
    # A batch of one would be frozen into the program.
    example = np.zeros((2, 3, height, width), dtype=np.uint8)
    tracking.mlflow_client()
    with quiet_export(), tracking.translated(), mlflow.start_run(run_id=run_id):
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
    with _scratch(path.parent, f"run {run_id}") as scratch:
        fetched = _artifact(logged.model_id, _PROGRAM_FILE, scratch)
        complete = replace(info, sha256=sha256(fetched))
        fetched.replace(path)
    tracking.log_json(run_id, _PROGRAM_INFO, asdict(complete) | {"model_id": logged.model_id})
    return complete


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")]


def _of_run(run_id: str) -> Path:
    return state_folder() / "cache" / "runs" / run_id / "model.pt2"


def program_of_run(run_id: str) -> tuple[Path, ProgramInfo]:
    """The program that a training run has logged, before it is registered; it is not opened.

    Raises
    ------
    DataError: MLflow's file is not the one that the run has logged.
    ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    path, info = _of_run(run_id), _info(stored)
    if not path.exists():
        with _scratch(path.parent, f"run {run_id}") as scratch:
            _program(stored["model_id"], info, scratch).replace(path)
    return path, info


def program_metadata(run_id: str) -> dict[str, Any]:
    """What training recorded with the program that a run has logged."""
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    return dict(_logged(stored["model_id"], f"run {run_id}").metadata)


def _logged(model_id: str, name: str) -> logged_model.LoggedModel:
    """What MLflow says of a logged model; `name` is the version's, for errors."""
    with tempfile.TemporaryDirectory() as folder:
        return logged_model.read(_artifact(model_id, "MLmodel", Path(folder)), name)


def register(run_id: str, model: str, tags: Mapping[str, str], description: str) -> int:
    """Register a run's program as a version of a model; returns its number.

    A run is registered once: a retry finds the version and writes its tags again.

    Raises
    ------
    DataError: MLflow's signature or metadata of the program contradict what the run recorded.
    ServiceError: MLflow cannot be reached.
    """
    import mlflow

    client = tracking.mlflow_client()
    stored = tracking.read_json(run_id, _PROGRAM_INFO)
    recorded = _info(stored)
    _logged(stored["model_id"], recorded.name).check(recorded)
    complete = {**tags, _SHA256: stored["sha256"]}
    tagged = {key: value[:_LONGEST_TAG] for key, value in complete.items()}
    with tracking.translated():
        version = _version_of_run(model, run_id)
        if version is None:
            # With its tags from the start: nobody ever sees a version without a decision.
            with tracking.prints_logged():
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
    return server().version_of_alias(model, alias)


def versions(model: str) -> list[int]:
    """The registered versions of a model, in order; raises DataError for an impossible name."""
    return server().versions(_named(model))


def set_alias(model: str, alias: str, version: int) -> None:
    """Let an alias name a version."""
    server().set_alias(model, alias, version)


def ui_url(model: str, version: int) -> str:
    """The version's page in MLflow."""
    return f"{settings().mlflow_uri.rstrip('/')}/#/models/{quote(model)}/versions/{version}"


def fetch(registration: "Registration") -> tuple[Path, ProgramInfo]:
    """A registered version's program file and what is recorded of it; the file is not opened.

    A copy is kept in the state folder, and MLflow asked when there is none of this version. What is
    wrong is not kept, so once it is right in MLflow, it can be fetched.

    Raises
    ------
    DataError: the version has no program of ours, or it is not what was registered.
    ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    folder = _folder(registration)
    kept = _kept(folder, registration)
    if kept is None:
        with _scratch(folder, registration.name) as scratch:
            kept = _fetched(registration, scratch)
            # The description comes last: with it the copy is complete.
            for name in ("model.pt2", _PROGRAM_INFO):
                (scratch / name).replace(folder / name)
    return folder / "model.pt2", kept


def _folder(registration: "Registration") -> Path:
    return state_folder() / "cache" / "programs" / registration.model / str(registration.version)


def _kept(folder: Path, registration: "Registration") -> ProgramInfo | None:
    """What is recorded of the copy in a folder; None when it is of another program, or there is
    none."""
    path = folder / _PROGRAM_INFO
    if not path.exists() or not (folder / "model.pt2").exists():
        return None
    try:
        info = _info(json.loads(path.read_text(encoding="utf-8")))
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
    recorded = found.tags.get(_SHA256)
    if recorded is None:
        raise DataError(f"{model}/{version} was not registered by Nightscore: it has no SHA-256.")
    stored = _recorded(found.run_id, scratch)
    where = f"MLflow's run {found.run_id}"
    registration.check(_info(stored | {"model": model, "version": version}), where)
    info = _info(stored | {"model": model, "version": version, "sha256": recorded})
    registration.check(info, f"MLflow's tag {_SHA256}")
    _logged(stored["model_id"], info.name).check(info)
    _program(stored["model_id"], info, scratch).replace(scratch / "model.pt2")
    described = asdict(info) | {"model_id": stored["model_id"]}
    (scratch / _PROGRAM_INFO).write_text(json.dumps(described), encoding="utf-8")
    return info


def _program(model_id: str, info: ProgramInfo, scratch: Path) -> Path:
    """Fetch a logged model's program into a folder; raises DataError when it is another file."""
    path = _artifact(model_id, _PROGRAM_FILE, scratch)
    if (found := sha256(path)) != info.sha256:
        raise DataError(
            f"MLflow's program of {info.name} has SHA-256 {found}, recorded is {info.sha256}.",
            "The artifact was changed or damaged; restore it, or promote another version.",
        )
    return path


def log_form(model_id: str, form: bytes) -> ConvertedInfo:
    """Store a program's form for OpenVINO beside it; returns what to record of it.

    Its name is its hash, so nobody ever reads a form that is being replaced.
    """
    from ml.conversion import unpack

    found = ConvertedInfo(hashlib.sha256(form).hexdigest(), unpack(form).openvino)
    server().upload(f"{server().folder_of_model(model_id)}/{_form_name(found)}", form)
    return found


def _form_name(converted: ConvertedInfo) -> str:
    return f"{_FORM}/{converted.sha256}.zip"


def model_of_run(run_id: str) -> str:
    """The id of the model that a training run has logged in MLflow."""
    return str(tracking.read_json(run_id, _PROGRAM_INFO)["model_id"])


def fetch_form(registration: "Registration") -> bytes | None:
    """The recorded form for OpenVINO of a version's program; None when none is recorded.

    A copy is kept beside the program's, under a name with its hash.

    Raises
    ------
    DataError: it is not what was recorded.
    ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    converted = registration.converted
    if converted is None:
        return None
    folder = _folder(registration)
    path = folder / f"{_FORM}-{converted.sha256}.zip"
    try:
        form = path.read_bytes()
    except FileNotFoundError:
        return _keep_form(registration, path)
    except OSError as error:
        raise ServiceError(
            f"The form for OpenVINO of {registration.name} cannot be read: {error}.",
            "It is fetched again when its folder is removed.",
        ) from error
    _check_form(form, registration, str(path))
    return form


def _keep_form(registration: "Registration", path: Path) -> bytes:
    with _scratch(path.parent, registration.name) as scratch:
        form = _stored_form(registration, scratch)
        (scratch / path.name).write_bytes(form)
        (scratch / path.name).replace(path)
        for other in path.parent.glob(f"{_FORM}-*.zip"):
            if other != path:
                other.unlink(missing_ok=True)
    return form


def stored_form(registration: "Registration") -> bytes:
    """The recorded form, from MLflow and not from this machine; raises as `fetch_form`."""
    with tempfile.TemporaryDirectory() as scratch:
        return _stored_form(registration, Path(scratch))


def _stored_form(registration: "Registration", scratch: Path) -> bytes:
    converted = registration.converted
    assert converted is not None
    fetched = _artifact(model_id(registration), _form_name(converted), scratch)
    form = fetched.read_bytes()
    _check_form(form, registration, "MLflow")
    return form


def _check_form(form: bytes, registration: "Registration", where: str) -> None:
    found, converted = hashlib.sha256(form).hexdigest(), registration.converted
    if converted is None or found != converted.sha256:
        raise DataError(
            f"The form for OpenVINO of {registration.name} has SHA-256 {found} in {where}; "
            f"recorded is {converted.sha256 if converted else 'none'}.",
            "It was changed or damaged. Find out by whom; `nightscore models convert "
            f"{registration.model}` makes it anew.",
        )


def model_id(registration: "Registration") -> str:
    """The id in MLflow of the model that a version was registered from."""
    try:
        path = _folder(registration) / _PROGRAM_INFO
        return str(json.loads(path.read_text(encoding="utf-8"))["model_id"])
    except (OSError, ValueError, KeyError, TypeError):  # a copy of before it was kept, or none
        run_id = server().version(registration.model, registration.version).run_id
        with tempfile.TemporaryDirectory() as folder:
            return str(_recorded(run_id, Path(folder))["model_id"])


@contextmanager
def _scratch(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder in `folder`, from which a complete file can be moved there; what is left
    goes away. Errors name what is fetched (`name`), and say if there is no room for it."""
    try:
        with files.scratch(folder) as scratch:
            yield scratch
    except OSError as error:
        raise _no_room(name, folder, error.strerror or str(error)) from error
    except ServiceError as error:
        # MLflow's client repeats an error of this machine's file system in words only.
        said = re.search(r"\[Errno (\d+)\]", str(error.__cause__))
        if said and (number := int(said[1])) in _NO_ROOM:
            raise _no_room(name, folder, os.strerror(number)) from error
        raise ServiceError(
            f"The program of {name} cannot be fetched: {error.message}", error.hint
        ) from error


def _no_room(name: str, folder: Path, reason: str) -> ServiceError:
    return ServiceError(
        f"The program of {name} cannot be kept in {folder}: {reason}.",
        "Make room there, or let NIGHTSCORE_HOME name a folder that can be written.",
    )


def _artifact(model_id: str, name: str, folder: Path) -> Path:
    """Fetch a file of a logged model into a folder; returns its path."""
    path = folder / name.rpartition("/")[2]
    server().download(f"{server().folder_of_model(model_id)}/{name}", path)
    return path


def _recorded(run_id: str, scratch: Path) -> dict[str, Any]:
    """What a training run has recorded of its program."""
    path = scratch / f"{run_id}.json"
    server().download(f"{server().folder_of_run(run_id)}/{_PROGRAM_INFO}", path)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{_PROGRAM_INFO} of run {run_id} is damaged: {error}.") from error
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
