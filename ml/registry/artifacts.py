"""The files of a version: where they are in MLflow, and where this machine caches them."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml import files
from ml.errors import DataError, ServiceError
from ml.registry import tracking
from ml.registry.cache import version_entry
from ml.registry.registration import Registration
from ml.registry.server import mlflow_api

PROGRAM_INFO = "program.json"
SHA256_TAG = "nightscore.sha256"

# The errors of a file system that cannot take another file.
_CANNOT_WRITE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOSPC,
    errno.EROFS,
}


def cache_folder(registration: Registration) -> Path:
    """Return the folder in which this machine caches a version's files."""
    return version_entry(registration.model, registration.version)


def logged_model_id_of_run(run_id: str) -> str:
    """Return the MLflow id of the model that a training run has logged."""
    return str(tracking.read_json(run_id, PROGRAM_INFO)["model_id"])


def logged_model_id(registration: Registration) -> str:
    """Return the MLflow id of the logged model that a version was registered from."""
    try:
        path = cache_folder(registration) / PROGRAM_INFO
        return str(json.loads(path.read_text(encoding="utf-8"))["model_id"])
    except (OSError, ValueError, KeyError, TypeError):
        # There is no cached file, or it is from before the id was kept in it.
        run_id = mlflow_api().get_version(registration.model, registration.version).run_id
        with tempfile.TemporaryDirectory() as folder:
            return str(download_program_info(run_id, Path(folder))["model_id"])


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """Open an empty folder within `folder`; whatever is still in it at the end is deleted.

    Downloads go into the scratch folder. Complete files are then moved to `folder`, so that no
    process ever reads half a file.

    Args:
        folder: where the complete files go; created if missing.
        name: what is downloaded, for messages, such as "shades/3".

    Raises:
        ServiceError: there is no room for the files, or MLflow failed.
    """
    try:
        with files.scratch_folder(folder) as scratch:
            yield scratch
    except OSError as error:
        raise _cannot_keep(name, folder, error.strerror or str(error)) from error
    except ServiceError as error:
        # MLflow's client reports an error of this machine's file system as text only.
        match = re.search(r"\[Errno (\d+)\]", str(error.__cause__))
        if match and (number := int(match[1])) in _CANNOT_WRITE:
            raise _cannot_keep(name, folder, os.strerror(number)) from error
        raise ServiceError(
            f"The program of {name} cannot be fetched: {error.message}", error.hint
        ) from error


def _cannot_keep(name: str, folder: Path, reason: str) -> ServiceError:
    return ServiceError(
        f"The program of {name} cannot be kept in {folder}: {reason}.",
        "Make room there, or let NIGHTSCORE_HOME name a folder that can be written.",
    )


def download_artifact(model_id: str, name: str, folder: Path) -> Path:
    """Download a file of a logged model.

    Args:
        model_id: the MLflow id of the logged model.
        name: the file's path among the model's artifacts, such as "data/model.pt2".
        folder: where the file goes, under the last part of its name.

    Returns:
        The path of the downloaded file.
    """
    path = folder / name.rpartition("/")[2]
    mlflow_api().download(f"{mlflow_api().model_artifact_uri(model_id)}/{name}", path)
    return path


def download_program_info(run_id: str, folder: Path) -> dict[str, Any]:
    """Download a training run's `program.json` into a folder and parse it.

    Returns:
        The fields of `ml.program.info.ProgramInfo` in their JSON form, and `model_id`.

    Raises:
        DataError: the file is not JSON.
    """
    path = folder / f"{run_id}.json"
    mlflow_api().download(f"{mlflow_api().run_artifact_uri(run_id)}/{PROGRAM_INFO}", path)
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{PROGRAM_INFO} of run {run_id} is damaged: {error}.") from error
    return document
