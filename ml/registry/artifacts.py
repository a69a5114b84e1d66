"""The files of a registered version: where they are in MLflow, and where a copy is kept."""

import errno
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml import files
from ml.errors import DataError, ServiceError
from ml.registry import tracking
from ml.registry.rest import server
from ml.settings import state_folder

if TYPE_CHECKING:
    from ml.registry.record import Registration


PROGRAM_INFO = "program.json"

_NO_ROOM = {errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS}


def copy_folder(registration: "Registration") -> Path:
    return state_folder() / "cache" / "programs" / registration.model / str(registration.version)


def model_of_run(run_id: str) -> str:
    """The id of the model that a training run has logged in MLflow."""
    return str(tracking.read_json(run_id, PROGRAM_INFO)["model_id"])


def model_id(registration: "Registration") -> str:
    """The id in MLflow of the model that a version was registered from."""
    try:
        path = copy_folder(registration) / PROGRAM_INFO
        return str(json.loads(path.read_text(encoding="utf-8"))["model_id"])
    except (OSError, ValueError, KeyError, TypeError):  # a copy of before it was kept, or none
        run_id = server().version(registration.model, registration.version).run_id
        with tempfile.TemporaryDirectory() as folder:
            return str(recorded_program(run_id, Path(folder))["model_id"])


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder in `folder`, from which a complete file can be moved there; what is left
    goes away. Errors name what is fetched (`name`), and say if there is no room for it.
    """
    try:
        with files.scratch_folder(folder) as scratch:
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


def fetch_artifact(model_id: str, name: str, folder: Path) -> Path:
    """Fetch a file of a logged model into a folder; returns its path."""
    path = folder / name.rpartition("/")[2]
    server().download(f"{server().folder_of_model(model_id)}/{name}", path)
    return path


def recorded_program(run_id: str, scratch: Path) -> dict[str, Any]:
    """What a training run has recorded of its program."""
    path = scratch / f"{run_id}.json"
    server().download(f"{server().folder_of_run(run_id)}/{PROGRAM_INFO}", path)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{PROGRAM_INFO} of run {run_id} is damaged: {error}.") from error
    return found


SHA256_TAG = "nightscore.sha256"
