"""MLflow's training runs: what is recorded while a model is made; and the client, for the registry.

What later steps need is in a run's artifacts and tags, never in memory.
"""

import csv
import io
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ml.errors import DataError, NightscoreError, ServiceError
from ml.network import network
from ml.settings import settings

if TYPE_CHECKING:
    from ml.snapshot import Snapshot

log = logging.getLogger(__name__)

# Read when MLflow is imported, whoever does it first: its messages go where this process's log
# goes, at their level, and not to standard error.
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")

_ATTEMPT = "nightscore.attempt"
# MLflow shows the pages of training, not those of language models and their traces.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_SAMPLING_INTERVAL_S = 5.0
# As MLflow and requests word a status; an id may hold the same digits.
_REFUSED = re.compile(r"error code 40[13]\b|\b40[13] (Client )?Error")


@lru_cache(maxsize=1)
def mlflow_client() -> Any:
    """An MLflow client with our credentials; MLflow reads them from the process environment."""
    current = settings()
    os.environ["MLFLOW_TRACKING_URI"] = current.require_mlflow_uri()
    if current.mlflow_username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = current.mlflow_username
        os.environ["MLFLOW_TRACKING_PASSWORD"] = current.mlflow_password.get_secret_value()
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **network().mlflow(),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow.MlflowClient()


@contextmanager
def translated() -> Iterator[None]:
    """Turns MLflow's and the network's errors into a line that names the address."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except NightscoreError:
        raise
    except (MlflowException, RequestException) as error:
        where, reason = _address(), " ".join(str(error).split())[:300]
        if _REFUSED.search(reason):
            raise refused(where) from error
        raise failed(where, reason) from error


def refused(where: str) -> ServiceError:
    """The error for a login that the MLflow at an address does not take."""
    return ServiceError(
        f"MLflow at {where} refuses our credentials.",
        "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


def failed(where: str, reason: str) -> ServiceError:
    """The error for whatever else goes wrong with the MLflow at an address."""
    return ServiceError(
        f"MLflow failed at {where}: {reason}", "Run `nightscore doctor` to see what is wrong."
    )


def _address() -> str:
    """Where MLflow is, without the login that the address may hold."""
    parts = urlsplit(settings().mlflow_uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class VersionInfo(NamedTuple):
    """A registered version: the run it came from, and its tags."""

    run_id: str
    tags: Mapping[str, str]


class Library:
    """What `ml.mlflow_rest.Mlflow` asks for, by MLflow's own library."""

    def version_of_alias(self, model: str, alias: str) -> int | None:
        client = mlflow_client()
        from mlflow.exceptions import MlflowException

        with translated():
            try:
                return int(client.get_model_version_by_alias(model, alias).version)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise

    def version(self, model: str, version: int) -> VersionInfo:
        client = mlflow_client()
        with translated():
            found = client.get_model_version(model, str(version))
        return VersionInfo(found.run_id, found.tags)

    def versions(self, named: str) -> list[int]:
        client = mlflow_client()
        with translated():
            return sorted(int(v.version) for v in client.search_model_versions(named))

    def set_alias(self, model: str, alias: str, version: int) -> None:
        client = mlflow_client()
        with translated():
            client.set_registered_model_alias(model, alias, str(version))

    def folder_of_run(self, run_id: str) -> str:
        return str(_run(run_id).info.artifact_uri)

    def folder_of_model(self, model_id: str) -> str:
        client = mlflow_client()
        with translated():
            return str(client.get_logged_model(model_id).artifact_location)

    def download(self, uri: str, path: Path) -> None:
        mlflow_client()
        from mlflow.artifacts import download_artifacts

        # Beside the file that it becomes, so that it need not be copied.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, translated():
            Path(download_artifacts(uri, dst_path=folder)).replace(path)

    def upload(self, uri: str, content: bytes) -> None:
        mlflow_client()
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        folder, _, name = uri.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch, translated():
            (Path(scratch) / name).write_bytes(content)
            get_artifact_repository(folder).log_artifact(str(Path(scratch) / name))


@contextmanager
def prints_logged() -> Iterator[None]:
    """Logs what MLflow prints on standard error, as it does for a few of its messages."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logging.getLogger("mlflow").info("%s", line)


def start_run(model: str, attempt: str | None, tags: Mapping[str, str]) -> str:
    """Start a training run in the experiment of the model's name, called by model and time in UTC;
    returns its id.

    A run that an earlier try of the same attempt left unfinished is marked failed.
    """
    client = mlflow_client()
    with translated():
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
    with translated():
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
    with translated():
        mlflow_client().set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_params(run_id: str, values: Mapping[str, Any]) -> None:
    """Record parameters of a run."""
    from mlflow.entities import Param

    with translated():
        mlflow_client().log_batch(
            run_id, params=[Param(k, str(v)[:6000]) for k, v in values.items()]
        )


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Record metrics of a run at a step (an epoch); values that are not finite are left out."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(k, float(v), now, step) for k, v in values.items() if math.isfinite(v)]
    with translated():
        mlflow_client().log_batch(run_id, metrics=metrics)


def log_json(run_id: str, name: str, value: Any) -> None:
    """Store a JSON document among a run's artifacts."""
    with translated():
        mlflow_client().log_text(run_id, json.dumps(value, indent=1), name)


def read_json(run_id: str, name: str) -> Any:
    """A JSON document from a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, translated():
        path = mlflow_client().download_artifacts(run_id, name, folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def log_figures(run_id: str, figures: Mapping[str, bytes]) -> None:
    """Store PNG pictures, name → bytes, below `plots/` of a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, translated():
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
    with translated():
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
    with translated():
        mlflow_client().log_inputs(run_id, datasets=[entry])


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run; raises DataError when there is no such run."""
    return dict(_run(run_id).data.tags)


def set_run_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run."""
    with translated():
        for key, value in tags.items():
            mlflow_client().set_tag(run_id, key, value)


def run_status(run_id: str) -> str:
    """RUNNING, FINISHED or FAILED; raises DataError when there is no such run."""
    return str(_run(run_id).info.status)


def artifacts(run_id: str) -> list[str]:
    """The names of a run's artifacts at the top."""
    with translated():
        return [found.path for found in mlflow_client().list_artifacts(run_id)]


def _run(run_id: str) -> Any:
    client = mlflow_client()
    from mlflow.exceptions import MlflowException

    with translated():
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise DataError(
                    f"There is no run {run_id!r} in MLflow.",
                    "A version's page in MLflow names the run it came from.",
                ) from None
            raise
