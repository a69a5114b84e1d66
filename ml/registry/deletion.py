"""What MLflow keeps of a model, and how it is deleted for good.

MLflow's own `delete_run` and `delete_logged_model` only mark: the artifacts stay. Here they go
first, through MLflow's server, and the run is marked last. So a deletion that was interrupted
leaves a run that is found again. What remains is the run's row in MLflow's database, which
`mlflow gc` removes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ml.registry.artifacts import SHA256_TAG
from ml.registry.client import mlflow_client, mlflow_errors
from ml.registry.tracking import MODEL_TAG, REPEATS_TAG, SNAPSHOT_TAG
from ml.registry.versions import name_filter

_ACTIVE = ("RUNNING", "SCHEDULED")
_PER_PAGE = 1000
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class StoredVersion:
    """A registered version as MLflow has it.

    Attributes:
        version: its number.
        run_id: the run that it came from.
        registered_at: when it was registered.
        is_ours: whether Nightscore registered it.
    """

    version: int
    run_id: str
    registered_at: datetime
    is_ours: bool


@dataclass(frozen=True)
class StoredRun:
    """A training run as MLflow has it, unless it is marked deleted.

    Attributes:
        run_id: its id.
        active: whether it runs, or is about to.
        last_used: when it ended; while it is active, when it began.
        snapshot_uri: the snapshot that it trains from; empty if none is recorded.
        repeats: the run that it reproduces; empty for none.
        is_ours: whether Nightscore logged it.
    """

    run_id: str
    active: bool
    last_used: datetime
    snapshot_uri: str = ""
    repeats: str = ""
    is_ours: bool = True


def stored_versions(model: str) -> list[StoredVersion]:
    """Return a model's registered versions.

    Raises:
        ServiceError: MLflow failed.
    """
    return [
        StoredVersion(
            int(entry.version),
            entry.run_id or "",
            _time(entry.creation_timestamp),
            SHA256_TAG in entry.tags,
        )
        for entry in _search_versions(name_filter(model))
    ]


def aliased_versions(model: str) -> set[int]:
    """Return the versions that an alias names, whichever.

    Raises:
        ServiceError: MLflow failed.
    """
    client = mlflow_client()
    # Of the model itself: a search for versions may leave aliases out (mlflow/mlflow#16734).
    found = _unless_absent(lambda: client.get_registered_model(model))
    return set() if found is None else {int(version) for version in found.aliases.values()}


def stored_runs(model: str) -> list[StoredRun]:
    """Return the runs in the experiment of a model's name.

    Raises:
        ServiceError: MLflow failed.
    """
    with mlflow_errors():
        experiment = mlflow_client().get_experiment_by_name(model)
    if experiment is None:
        return []
    return [_stored_run(run) for run in _search_runs([experiment.experiment_id], "")]


def runs_with_snapshot(digest: str = "") -> list[StoredRun]:
    """Return the runs of all experiments that train, or have trained, from a snapshot.

    Args:
        digest: the hash that names the snapshot's file; empty for any snapshot.

    Raises:
        ServiceError: MLflow failed.
    """
    client = mlflow_client()
    with mlflow_errors():
        experiments = [entry.experiment_id for entry in _pages(client.search_experiments)]
    end = f"/{_hexadecimal(digest)}.parquet" if digest else ""
    runs = _search_runs(experiments, f"tags.`{SNAPSHOT_TAG}` LIKE '%{end}'") if experiments else ()
    return [_stored_run(run) for run in runs]


def models_of_run(run_id: str) -> list[str]:
    """Return the registered versions of any model that came from a run, as MODEL/VERSION."""
    return [
        f"{entry.name}/{entry.version}"
        for entry in _search_versions(f"run_id = '{_hexadecimal(run_id)}'")
    ]


def artifacts_size(run_id: str) -> tuple[int, int]:
    """Return how many artifacts a run and the models that it logged have, and their bytes.

    Raises:
        ServiceError: MLflow failed.
    """
    sizes = [size for uri in _artifact_uris(run_id) for size in _file_sizes(uri)]
    return len(sizes), sum(sizes)


def delete_version(model: str, version: int) -> None:
    """Delete a registered version and the aliases that name it; it is no error if it is gone.

    Raises:
        ServiceError: MLflow failed.
    """
    client = mlflow_client()
    _unless_absent(lambda: client.delete_model_version(model, str(version)))


def delete_run(run_id: str) -> None:
    """Delete a run, the models that it logged, and the artifacts of all; no error if they are gone.

    Raises:
        ServiceError: MLflow failed; deleting again goes on.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = mlflow_client()
    run = _unless_absent(lambda: client.get_run(run_id))
    if run is None:
        return
    for logged in _logged_models(run):
        with mlflow_errors():
            get_artifact_repository(logged.artifact_location).delete_artifacts()
        _unless_absent(lambda model_id=logged.model_id: client.delete_logged_model(model_id))
    with mlflow_errors():
        get_artifact_repository(run.info.artifact_uri).delete_artifacts()
    _unless_absent(lambda: client.delete_run(run_id))


def _artifact_uris(run_id: str) -> list[str]:
    client = mlflow_client()
    run = _unless_absent(lambda: client.get_run(run_id))
    if run is None:
        return []
    return [run.info.artifact_uri, *(logged.artifact_location for logged in _logged_models(run))]


def _logged_models(run: Any) -> list[Any]:
    """The models that a run has logged and that are not marked deleted."""
    client = mlflow_client()
    search = {
        "experiment_ids": [run.info.experiment_id],
        "filter_string": f"source_run_id = '{_hexadecimal(run.info.run_id)}'",
    }
    with mlflow_errors():
        return list(_pages(client.search_logged_models, **search))


def _file_sizes(uri: str) -> Iterator[int]:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with mlflow_errors():
        repository = get_artifact_repository(uri)
        folders = [""]
        while folders:
            for entry in repository.list_artifacts(folders.pop() or None):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    yield entry.file_size or 0


def _search_versions(condition: str) -> Iterator[Any]:
    with mlflow_errors():
        yield from _pages(mlflow_client().search_model_versions, filter_string=condition)


def _search_runs(experiments: list[str], condition: str) -> Iterator[Any]:
    search = {"experiment_ids": experiments, "filter_string": condition, "max_results": _PER_PAGE}
    with mlflow_errors():
        yield from _pages(mlflow_client().search_runs, **search)


def _pages(search: Any, **arguments: Any) -> Iterator[Any]:
    page = search(**arguments)
    yield from page
    while page.token:
        page = search(**arguments, page_token=page.token)
        yield from page


def _hexadecimal(text: str) -> str:
    """An id or a hash for a filter of MLflow, which has no parameters."""
    if not re.fullmatch(r"[0-9a-f]+", text):
        raise ValueError(f"{text!r} is no id of MLflow and no hash")
    return text


def _stored_run(run: Any) -> StoredRun:
    tags: Mapping[str, str] = run.data.tags
    return StoredRun(
        run.info.run_id,
        active=run.info.status in _ACTIVE,
        last_used=_time(run.info.end_time or run.info.start_time),
        snapshot_uri=tags.get(SNAPSHOT_TAG, ""),
        repeats=tags.get(REPEATS_TAG, ""),
        is_ours=MODEL_TAG in tags or tags.get("mlflow.source.name") == "nightscore",
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _unless_absent(request: Any) -> Any | None:
    """What a request returns; None if what it is about does not exist."""
    from mlflow.exceptions import MlflowException

    with mlflow_errors():
        try:
            return request()
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise
