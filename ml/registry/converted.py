"""A registered program's form for OpenVINO: stored, fetched, compared with what was recorded."""

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ml.errors import DataError, ServiceError
from ml.files import atomic_write
from ml.program.info import ConvertedInfo
from ml.registry.artifacts import copy_folder, fetch_artifact, model_id, scratch_folder
from ml.registry.rest import server

if TYPE_CHECKING:
    from ml.registry.record import Registration


_FORM = "openvino"


def log_form(model_id: str, form: bytes) -> ConvertedInfo:
    """Store a program's form for OpenVINO beside it; returns what to record of it.

    Its name is its hash, so nobody ever reads a form that is being replaced.
    """
    from ml.program.conversion import unpack

    found = ConvertedInfo(hashlib.sha256(form).hexdigest(), unpack(form).openvino)
    server().upload(f"{server().folder_of_model(model_id)}/{_form_name(found)}", form)
    return found


def _form_name(converted: ConvertedInfo) -> str:
    return f"{_FORM}/{converted.sha256}.zip"


def fetch_form(registration: "Registration") -> bytes | None:
    """The recorded form for OpenVINO of a version's program; None when none is recorded.

    A copy is kept beside the program's, under a name with its hash.

    Raises:
        DataError: it is not what was recorded.
        ServiceError: MLflow cannot be reached, or there is no room for a copy.
    """
    converted = registration.converted
    if converted is None:
        return None
    folder = copy_folder(registration)
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
    with scratch_folder(path.parent, registration.name) as scratch:
        form = _stored_form(registration, scratch)
        atomic_write(path, form)
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
    fetched = fetch_artifact(model_id(registration), _form_name(converted), scratch)
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
