"""MLflow's training runs: what is recorded while a model is made; and the client, for the registry.

What later steps need is in a run's artifacts and tags, never in memory.
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

from ml.registry.client import get_run, mlflow_client, mlflow_errors

if TYPE_CHECKING:
    from ml.data.snapshot import Snapshot

log = logging.getLogger(__name__)

_ATTEMPT = "nightscore.attempt"
# MLflow shows the pages of training, not those of language models and their traces.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_SAMPLING_INTERVAL_S = 5.0


def start_run(model: str, attempt: str | None, tags: Mapping[str, str]) -> str:
    """Start a training run in the experiment of the model's name, called by model and time in UTC;
    returns its id.

    A run that an earlier try of the same attempt left unfinished is marked failed.
    """
    client = mlflow_client()
    with mlflow_errors():
        experiment = client.get_experiment_by_name(model)
        identity = (
            experiment.experiment_id if experiment else client.create_experiment(model, tags=_KIND)
        )
        if attempt:
            for left in _runs_of(identity, attempt):
                if left.info.status == "RUNNING":
                    client.set_terminated(left.info.run_id, "FAILED")
        own = {"mlflow.source.name": "nightscore"} | ({_ATTEMPT: attempt} if attempt else {})
        name = f"{model} {datetime.now(UTC):%Y-%m-%d %H:%M}"
        run = client.create_run(identity, tags={**tags, **own}, run_name=name)
        return str(run.info.run_id)


def finished_run(model: str, attempt: str | None) -> str | None:
    """The id of the run that this attempt has finished before, so that a retry can reuse it."""
    if not attempt:
        return None
    with mlflow_errors():
        experiment = mlflow_client().get_experiment_by_name(model)
        runs = _runs_of(experiment.experiment_id, attempt) if experiment else []
        return next((r.info.run_id for r in runs if r.info.status == "FINISHED"), None)


def _runs_of(experiment_id: str, attempt: str) -> Sequence[Any]:
    quoted = attempt.replace("'", "")
    found: Sequence[Any] = mlflow_client().search_runs(
        [experiment_id], filter_string=f"tags.`{_ATTEMPT}` = '{quoted}'"
    )
    return found


def end_run(run_id: str, *, failed: bool = False) -> None:
    """Mark a run finished, or failed."""
    with mlflow_errors():
        mlflow_client().set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_params(run_id: str, values: Mapping[str, Any]) -> None:
    """Record parameters of a run."""
    from mlflow.entities import Param

    with mlflow_errors():
        mlflow_client().log_batch(
            run_id, params=[Param(k, str(v)[:6000]) for k, v in values.items()]
        )


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Record metrics of a run at a step (an epoch); values that are not finite are left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(k, float(v), now, step) for k, v in values.items() if math.isfinite(v)]
    with mlflow_errors():
        mlflow_client().log_batch(run_id, metrics=metrics)


def log_json(run_id: str, name: str, value: Any) -> None:
    """Store a JSON document among a run's artifacts."""
    with mlflow_errors():
        mlflow_client().log_text(run_id, json.dumps(value, indent=1), name)


def read_json(run_id: str, name: str) -> Any:
    """A JSON document from a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, mlflow_errors():
        path = mlflow_client().download_artifacts(run_id, name, folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def log_figures(run_id: str, figures: Mapping[str, bytes]) -> None:
    """Store PNG pictures, name → bytes, below `plots/` of a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, mlflow_errors():
        for name, content in figures.items():
            (Path(folder) / f"{name}.png").write_bytes(content)
        mlflow_client().log_artifacts(run_id, folder, "plots")


def log_table(run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store rows, all of the same columns, as a CSV file below `tables/` of a run's artifacts."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    # Not MLflow's log_table, which appends to what an earlier try of the step has left.
    with mlflow_errors():
        mlflow_client().log_text(run_id, text.getvalue(), f"tables/{name}.csv")


@contextmanager
def monitored(run_id: str) -> Iterator[None]:
    """Record how busy the machine is (processor, memory, disk, network, NVIDIA's GPUs) as metrics
    of a run.

    They are sampled every few seconds while the context is open. A monitor that cannot start is
    warned of, and what is in the context goes on.
    """
    monitor = _monitor(run_id)
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()


def _monitor(run_id: str) -> Any | None:
    mlflow_client()
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, sampling_interval=_SAMPLING_INTERVAL_S)
        monitor.start()
    except Exception as error:  # of whatever library asks the machine or its drivers
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
    entry = DatasetInput(dataset._to_mlflow_entity(), tags=context)
    with mlflow_errors():
        mlflow_client().log_inputs(run_id, datasets=[entry])


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run; raises DataError when there is no such run."""
    return dict(get_run(run_id).data.tags)


def set_run_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run."""
    with mlflow_errors():
        for key, value in tags.items():
            mlflow_client().set_tag(run_id, key, value)


def run_status(run_id: str) -> str:
    """RUNNING, FINISHED or FAILED; raises DataError when there is no such run."""
    return str(get_run(run_id).info.status)


def artifacts(run_id: str) -> list[str]:
    """The names of a run's artifacts at the top."""
    with mlflow_errors():
        return [found.path for found in mlflow_client().list_artifacts(run_id)]


MODEL, ENVIRONMENT, EVALUATION = "model.json", "environment.json", "evaluation.json"

SNAPSHOT_TAG, MODEL_TAG = "nightscore.snapshot", "nightscore.model"

REPEATS_TAG, WEIGHTS_TAG = "nightscore.repeats", "nightscore.weights_sha256"
