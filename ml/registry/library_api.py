"""Requests to MLflow through its own library."""

import tempfile
from pathlib import Path

from ml.files import scratch_folder
from ml.registry.api import VersionInfo
from ml.registry.client import get_run, mlflow_client, mlflow_errors


class LibraryApi:
    """The requests of `ml.registry.api.MlflowApi`, made by MLflow's own library."""

    def version_of_alias(self, model: str, alias: str) -> int | None:
        """See `MlflowApi`."""
        client = mlflow_client()
        from mlflow.exceptions import MlflowException

        with mlflow_errors():
            try:
                return int(client.get_model_version_by_alias(model, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def get_version(self, model: str, version: int) -> VersionInfo:
        """See `MlflowApi`."""
        client = mlflow_client()
        with mlflow_errors():
            model_version = client.get_model_version(model, str(version))
        return VersionInfo(model_version.run_id, model_version.tags)

    def search_versions(self, filter_string: str) -> list[int]:
        """See `MlflowApi`."""
        client = mlflow_client()
        with mlflow_errors():
            return sorted(int(v.version) for v in client.search_model_versions(filter_string))

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """See `MlflowApi`."""
        client = mlflow_client()
        with mlflow_errors():
            client.set_registered_model_alias(model, alias, str(version))

    def run_artifact_uri(self, run_id: str) -> str:
        """See `MlflowApi`."""
        return str(get_run(run_id).info.artifact_uri)

    def model_artifact_uri(self, model_id: str) -> str:
        """See `MlflowApi`."""
        client = mlflow_client()
        with mlflow_errors():
            return str(client.get_logged_model(model_id).artifact_location)

    def download(self, uri: str, path: Path) -> None:
        """See `MlflowApi`."""
        mlflow_client()
        from mlflow.artifacts import download_artifacts

        # In a folder beside the file that it becomes, so that a rename is enough.
        with scratch_folder(path.parent) as folder, mlflow_errors():
            Path(download_artifacts(uri, dst_path=str(folder))).replace(path)

    def upload(self, uri: str, content: bytes) -> None:
        """See `MlflowApi`."""
        mlflow_client()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        folder, _, name = uri.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch, mlflow_errors():
            (Path(scratch) / name).write_bytes(content)
            get_artifact_repository(folder).log_artifact(str(Path(scratch) / name))
