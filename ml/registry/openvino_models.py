"""The OpenVINO form of a registered program: stored in MLflow, downloaded, cached and verified."""

import hashlib
import tempfile
from pathlib import Path

from ml.errors import DataError, ServiceError
from ml.files import atomic_write
from ml.program.info import ConvertedInfo
from ml.registry import cache
from ml.registry.artifacts import cache_folder, download_artifact, logged_model_id, scratch_folder
from ml.registry.registration import Registration
from ml.registry.server import mlflow_api

_FOLDER = "openvino"


def log_openvino_model(model_id: str, content: bytes) -> ConvertedInfo:
    """Store the OpenVINO form of a program among the artifacts of its logged model.

    The artifact's name is its hash, so a form is never replaced while somebody reads it.

    Args:
        model_id: the MLflow id of the logged model.
        content: the form, as `ml.program.conversion.pack` made it.

    Returns:
        What is to be recorded of the form.
    """
    from ml.program.conversion import unpack

    converted = ConvertedInfo(hashlib.sha256(content).hexdigest(), unpack(content).openvino)
    mlflow_api().upload(
        f"{mlflow_api().model_artifact_uri(model_id)}/{_artifact_name(converted)}", content
    )
    return converted


def _artifact_name(converted: ConvertedInfo) -> str:
    return f"{_FOLDER}/{converted.sha256}.zip"


def fetch_openvino_model(registration: Registration) -> bytes | None:
    """Return the recorded OpenVINO form of a version; None when none is recorded.

    The form is cached beside the program, under a name with its hash.

    Raises:
        DataError: the form is not the recorded one.
        ServiceError: MLflow cannot be reached, or there is no room for the cached file.
    """
    converted = registration.converted
    if converted is None:
        return None
    path = cache_folder(registration) / f"{_FOLDER}-{converted.sha256}.zip"
    cache.hold(path.parent)
    content = _read_cached(path, registration)
    if content is None:
        with cache.fetching(path.parent):
            # Another process may have fetched it while this one waited.
            content = _read_cached(path, registration)
            if content is None:
                return _download_to_cache(registration, path)
    _verify(content, registration, str(path))
    return content


def _read_cached(path: Path, registration: Registration) -> bytes | None:
    """Return the cached form, which is not verified; None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(
            f"The form for OpenVINO of {registration.name} cannot be read: {error}.",
            "It is fetched again when its folder is removed.",
        ) from error


def _download_to_cache(registration: Registration, path: Path) -> bytes:
    with scratch_folder(path.parent, registration.name) as scratch:
        content = _download(registration, scratch)
        atomic_write(path, content)
        for other in path.parent.glob(f"{_FOLDER}-*.zip"):
            if other != path:
                other.unlink(missing_ok=True)
    return content


def download_openvino_model(registration: Registration) -> bytes:
    """Return the recorded OpenVINO form from MLflow, never from this machine's cache.

    Raises:
        DataError: the form is not the recorded one.
        ServiceError: MLflow cannot be reached.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _download(registration, Path(scratch))


def _download(registration: Registration, scratch: Path) -> bytes:
    converted = registration.converted
    assert converted is not None
    path = download_artifact(logged_model_id(registration), _artifact_name(converted), scratch)
    content = path.read_bytes()
    _verify(content, registration, "MLflow")
    return content


def _verify(content: bytes, registration: Registration, source: str) -> None:
    sha256, converted = hashlib.sha256(content).hexdigest(), registration.converted
    if converted is None or sha256 != converted.sha256:
        raise DataError(
            f"The form for OpenVINO of {registration.name} has SHA-256 {sha256} in {source}; "
            f"recorded is {converted.sha256 if converted else 'none'}.",
            "It was changed or damaged. Find out by whom; `nightscore models convert "
            f"{registration.model}` makes it anew.",
        )
