"""MLflow's model registry: exported programs, versions and the aliases that name them."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from ml.config.schema import NAME
from ml.errors import DataError
from ml.registry import tracking
from ml.registry.artifacts import PROGRAM_INFO, SHA256_TAG
from ml.registry.client import mlflow_client, mlflow_errors, prints_logged
from ml.registry.programs import logged, program_info
from ml.registry.rest import server
from ml.settings import settings

# What MLflow's tables have room for.
_LONGEST_TAG = _LONGEST_DESCRIPTION = 5000


def register(run_id: str, model: str, tags: Mapping[str, str], description: str) -> int:
    """Register a run's program as a version of a model; returns its number.

    A run is registered once: a retry finds the version and writes its tags again.

    Raises:
        DataError: MLflow's signature or metadata of the program contradict what the run recorded.
        ServiceError: MLflow cannot be reached.
    """
    import mlflow

    client = mlflow_client()
    stored = tracking.read_json(run_id, PROGRAM_INFO)
    recorded = program_info(stored)
    logged(stored["model_id"], recorded.name).check(recorded)
    complete = {**tags, SHA256_TAG: stored["sha256"]}
    tagged = {key: value[:_LONGEST_TAG] for key, value in complete.items()}
    with mlflow_errors():
        version = _version_of_run(model, run_id)
        if version is None:
            # With its tags from the start: nobody ever sees a version without a decision.
            with prints_logged():
                made = mlflow.register_model(f"models:/{stored['model_id']}", model, tags=tagged)
            version = int(made.version)
        else:
            for key, value in tagged.items():
                client.set_model_version_tag(model, str(version), key, value)
        client.update_model_version(model, str(version), description[:_LONGEST_DESCRIPTION])
    return version


def _version_of_run(model: str, run_id: str) -> int | None:
    found = mlflow_client().search_model_versions(_named(model))
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
