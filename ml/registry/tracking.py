"""Training runs in MLflow: parameters, metrics, tags and artifacts.

What a later step needs is in a run's artifacts and tags, never in memory.
"""

import csv
import io
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml.errors import DataError
from ml.registry.client import get_run, mlflow_client, mlflow_errors

if TYPE_CHECKING:
    from ml.data.snapshot import Snapshot

log = logging.getLogger(__name__)

# Artifacts and tags of a run that several packages use.
MODEL_FILE, ENVIRONMENT_FILE, EVALUATION_FILE = "model.json", "environment.json", "evaluation.json"
SNAPSHOT_TAG, MODEL_TAG = "nightscore.snapshot", "nightscore.model"
REPEATS_TAG, WEIGHTS_TAG = "nightscore.repeats", "nightscore.weights_sha256"

_IDEMPOTENCY_TAG = "nightscore.attempt"
# With it MLflow shows the pages of training, not those of language models and their traces.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_SAMPLING_INTERVAL_S = 5.0
# The longest value of a parameter that MLflow stores.
_MAX_PARAM_LENGTH = 6000


def start_run(model: str, idempotency_key: str | None, tags: Mapping[str, str]) -> str:
    """Start a training run, named by model and time (UTC), in the experiment of the model's name.

    A run that an earlier try with the same key left unfinished is marked failed.

    Args:
        model: the model's name.
        idempotency_key: the same for every try of the same training, such as Airflow's run id;
            None for a training that is not retried.
        tags: tags of the run.

    Returns:
        The run's id.

    Raises:
        ServiceError: MLflow failed.
    """
    client = mlflow_client()
    with mlflow_errors():
        experiment = client.get_experiment_by_name(model)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(model, tags=_EXPERIMENT_TAGS)
        )
        all_tags = {**tags, "mlflow.source.name": "nightscore"}
        if idempotency_key:
            for run in _search_runs(experiment_id, idempotency_key):
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, "FAILED")
            all_tags[_IDEMPOTENCY_TAG] = idempotency_key
        name = f"{model} {datetime.now(UTC):%Y-%m-%d %H:%M}"
        run = client.create_run(experiment_id, tags=all_tags, run_name=name)
        return str(run.info.run_id)


def find_finished_run(model: str, idempotency_key: str | None) -> str | None:
    """Return the id of the run that an earlier try with this key has finished; None without one."""
    if not idempotency_key:
        return None
    with mlflow_errors():
        experiment = mlflow_client().get_experiment_by_name(model)
        runs = _search_runs(experiment.experiment_id, idempotency_key) if experiment else []
        return next((run.info.run_id for run in runs if run.info.status == "FINISHED"), None)


def _search_runs(experiment_id: str, idempotency_key: str) -> Sequence[Any]:
    quoted = idempotency_key.replace("'", "")
    runs: Sequence[Any] = mlflow_client().search_runs(
        [experiment_id], filter_string=f"tags.`{_IDEMPOTENCY_TAG}` = '{quoted}'"
    )
    return runs


def end_run(run_id: str, *, failed: bool = False) -> None:
    """Mark a run finished, or failed."""
    with mlflow_errors():
        mlflow_client().set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_params(run_id: str, values: Mapping[str, Any]) -> None:
    """Record parameters of a run."""
    from mlflow.entities import Param

    params = [Param(name, str(value)[:_MAX_PARAM_LENGTH]) for name, value in values.items()]
    with mlflow_errors():
        mlflow_client().log_batch(run_id, params=params)


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Record metrics of a run at a step (an epoch); values that are not finite are left out."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now_ms, step)
        for name, value in values.items()
        if math.isfinite(value)
    ]
    with mlflow_errors():
        mlflow_client().log_batch(run_id, metrics=metrics)


def log_json(run_id: str, name: str, value: Any) -> None:
    """Store a JSON document among a run's artifacts."""
    with mlflow_errors():
        mlflow_client().log_text(run_id, json.dumps(value, indent=1), name)


def read_json(run_id: str, name: str) -> Any:
    """Read a JSON document from a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, mlflow_errors():
        path = mlflow_client().download_artifacts(run_id, name, folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def log_figures(run_id: str, figures: Mapping[str, bytes]) -> None:
    """Store figures, name → PNG, below `plots/` of a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, mlflow_errors():
        for name, content in figures.items():
            (Path(folder) / f"{name}.png").write_bytes(content)
        mlflow_client().log_artifacts(run_id, folder, "plots")


def log_table(run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store rows, which all have the same columns, as CSV below `tables/` of a run's artifacts."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    # Not MLflow's log_table, which would append to the file of an earlier try of the step.
    with mlflow_errors():
        mlflow_client().log_text(run_id, text.getvalue(), f"tables/{name}.csv")


@contextmanager
def log_system_metrics(run_id: str) -> Iterator[None]:
    """Sample the load of processor, memory, disk, network and NVIDIA GPUs as metrics of a run.

    Samples are taken every few seconds while the context is open. When the monitor cannot start,
    a warning is logged and the body of the context runs without it.
    """
    monitor = _start_monitor(run_id)
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()


def _start_monitor(run_id: str) -> Any | None:
    mlflow_client()
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, sampling_interval=_SAMPLING_INTERVAL_S)
        monitor.start()
    except Exception as error:  # of any library that asks the machine or its drivers
        log.warning("The machine is not monitored while training: %s", error)
        return None
    return monitor


def log_snapshot(run_id: str, snapshot: "Snapshot") -> None:
    """Record the snapshot as the run's data set input."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    dataset = MetaDataset(
        resolve_dataset_source(snapshot.uri), name=snapshot.dataset, digest=snapshot.hash
    )
    context = [InputTag("mlflow.data.context", "training")]
    dataset_input = DatasetInput(dataset._to_mlflow_entity(), tags=context)
    with mlflow_errors():
        mlflow_client().log_inputs(run_id, datasets=[dataset_input])


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run.

    Raises:
        DataError: there is no such run, or it is deleted.
    """
    run = get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise DataError(
            f"Run {run_id} was deleted from MLflow.",
            "The limit `versions` of nightscore.yaml says how long runs are kept.",
        )
    return dict(run.data.tags)


def set_run_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run."""
    with mlflow_errors():
        for key, value in tags.items():
            mlflow_client().set_tag(run_id, key, value)


def run_status(run_id: str) -> str:
    """Return the status of a run: RUNNING, FINISHED or FAILED.

    Raises:
        DataError: there is no such run.
    """
    return str(get_run(run_id).info.status)


def list_artifacts(run_id: str) -> list[str]:
    """Return the names of a run's artifacts at the top level."""
    with mlflow_errors():
        return [artifact.path for artifact in mlflow_client().list_artifacts(run_id)]
