"""What scoring and promotion need of MLflow, whichever client talks to it.

`ml.registry.server.mlflow_api` chooses the client: `ml.registry.rest_api.RestApi`, or
`ml.registry.library_api.LibraryApi` where the REST API does not do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol


class VersionInfo(NamedTuple):
    """A registered version: the run that it came from, and its tags."""

    run_id: str
    tags: Mapping[str, str]


class MlflowApi(Protocol):
    """The requests to MLflow. All of them raise ServiceError when MLflow fails."""

    def version_of_alias(self, model: str, alias: str) -> int | None:
        """Return the version that an alias names; None when there is no such model or alias."""

    def get_version(self, model: str, version: int) -> VersionInfo:
        """Return the run and the tags of a registered version."""

    def search_versions(self, filter_string: str) -> list[int]:
        """Return the versions that match a filter in MLflow's syntax, in ascending order."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Let an alias name a version."""

    def run_artifact_uri(self, run_id: str) -> str:
        """Return the URI of the folder with a run's artifacts."""

    def model_artifact_uri(self, model_id: str) -> str:
        """Return the URI of the folder with a logged model's artifacts."""

    def download(self, uri: str, path: Path) -> None:
        """Write an artifact to a file.

        Raises:
            OSError: the file cannot be written.
        """

    def upload(self, uri: str, content: bytes) -> None:
        """Store an artifact."""
