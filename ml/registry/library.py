"""MLflow asked through its own library."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ml.files import scratch_folder
from ml.registry.client import get_run, mlflow_client, mlflow_errors


class VersionInfo(NamedTuple):
    """A registered version: the run it came from, and its tags."""

    run_id: str
    tags: Mapping[str, str]


class Library:
    """What `ml.registry.rest.Mlflow` asks for, by MLflow's own library."""

    def version_of_alias(self, model: str, alias: str) -> int | None:
        client = mlflow_client()
        from mlflow.exceptions import MlflowException

        with mlflow_errors():
            try:
                return int(client.get_model_version_by_alias(model, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def version(self, model: str, version: int) -> VersionInfo:
        client = mlflow_client()
        with mlflow_errors():
            found = client.get_model_version(model, str(version))
        return VersionInfo(found.run_id, found.tags)

    def versions(self, named: str) -> list[int]:
        client = mlflow_client()
        with mlflow_errors():
            return sorted(int(v.version) for v in client.search_model_versions(named))

    def set_alias(self, model: str, alias: str, version: int) -> None:
        client = mlflow_client()
        with mlflow_errors():
            client.set_registered_model_alias(model, alias, str(version))

    def folder_of_run(self, run_id: str) -> str:
        return str(get_run(run_id).info.artifact_uri)

    def folder_of_model(self, model_id: str) -> str:
        client = mlflow_client()
        with mlflow_errors():
            return str(client.get_logged_model(model_id).artifact_location)

    def download(self, uri: str, path: Path) -> None:
        mlflow_client()
        from mlflow.artifacts import download_artifacts

        # Beside the file that it becomes, so that it need not be copied.
        with scratch_folder(path.parent) as folder, mlflow_errors():
            Path(download_artifacts(uri, dst_path=str(folder))).replace(path)

    def upload(self, uri: str, content: bytes) -> None:
        mlflow_client()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        folder, _, name = uri.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch, mlflow_errors():
            (Path(scratch) / name).write_bytes(content)
            get_artifact_repository(folder).log_artifact(str(Path(scratch) / name))
