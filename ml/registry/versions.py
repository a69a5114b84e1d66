"""MLflow's model registry: registered versions and the aliases that name them."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from ml.config.schema import NAME
from ml.database.connection import rows
from ml.errors import DataError
from ml.registry import tracking
from ml.registry.artifacts import PROGRAM_INFO, SHA256_TAG
from ml.registry.client import mlflow_client, mlflow_errors, stderr_logged
from ml.registry.programs import parse_program_info, read_logged_model
from ml.registry.server import mlflow_api
from ml.settings import settings

# The longest that MLflow's tables can store.
_MAX_TAG_LENGTH = _MAX_DESCRIPTION_LENGTH = 5000


def register(run_id: str, model: str, tags: Mapping[str, str], model_card: str) -> int:
    """Register a run's program as a version of a model.

    A run is registered once: a retry finds the version and writes its tags again.

    Args:
        run_id: the training run.
        model: the name of the registered model; created if missing.
        tags: tags of the version.
        model_card: the description on the version's page, in Markdown.

    Returns:
        The version's number.

    Raises:
        DataError: MLflow's signature or metadata of the program contradict what the run recorded.
        ServiceError: MLflow cannot be reached.
    """
    import mlflow

    client = mlflow_client()
    document = tracking.read_json(run_id, PROGRAM_INFO)
    info = parse_program_info(document)
    read_logged_model(document["model_id"], info.name).check(info)
    all_tags = {**tags, SHA256_TAG: document["sha256"]}
    all_tags = {key: value[:_MAX_TAG_LENGTH] for key, value in all_tags.items()}
    with mlflow_errors():
        version = _version_of_run(model, run_id)
        if version is None:
            # The tags are there from the start: nobody ever sees a version without a decision.
            with stderr_logged():
                uri = f"models:/{document['model_id']}"
                version = int(mlflow.register_model(uri, model, tags=all_tags).version)
        else:
            for key, value in all_tags.items():
                client.set_model_version_tag(model, str(version), key, value)
        client.update_model_version(model, str(version), model_card[:_MAX_DESCRIPTION_LENGTH])
    return version


def _version_of_run(model: str, run_id: str) -> int | None:
    versions = mlflow_client().search_model_versions(name_filter(model))
    return next((int(v.version) for v in versions if v.run_id == run_id), None)


def name_filter(model: str) -> str:
    """Return MLflow's filter for a model's versions; it has no parameters, so the name is checked.

    Raises:
        DataError: no model can have this name.
    """
    if not re.fullmatch(NAME, model):
        raise DataError(
            f"{model!r} is not the name of a model.", "`nightscore models` lists the models."
        )
    return f"name = '{model}'"


def version_of_alias(model: str, alias: str) -> int | None:
    """Return the version that an alias names; None when there is no such model or alias."""
    return mlflow_api().version_of_alias(model, alias)


def list_versions(model: str) -> list[int]:
    """Return the numbers of a model's registered versions, in ascending order.

    Raises:
        DataError: no model can have this name.
        ServiceError: MLflow failed.
    """
    return mlflow_api().search_versions(name_filter(model))


def version_rows(connection: sa.Connection) -> list[Mapping[str, Any]]:
    """Return the rows of `reporting.model_versions`, by model and version."""
    return rows(connection, "registry/sql/list_versions")


def set_alias(model: str, alias: str, version: int) -> None:
    """Let an alias name a version."""
    mlflow_api().set_alias(model, alias, version)


def ui_url(model: str, version: int) -> str:
    """Return the address of the version's page in MLflow."""
    return f"{settings().mlflow_uri.rstrip('/')}/#/models/{quote(model)}/versions/{version}"
