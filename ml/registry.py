"""MLflow: training runs, registered versions and their aliases. The only module that imports it.

What later steps need is in the run's artifacts and in the version's tags, never in memory.
"""

import csv
import io
import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ml.errors import DataError, NightscoreError, ServiceError
from ml.program import ProgramInfo, quiet_export, sha256
from ml.settings import settings, state_folder

if TYPE_CHECKING:
    from ml.models import Network
    from ml.snapshot import Snapshot

log = logging.getLogger(__name__)

_MODEL = "model"
_PROGRAM_FILE = "data/model.pt2"
_PROGRAM_INFO = "program.json"
_SHA256 = "nightscore.sha256"
_ATTEMPT = "nightscore.attempt"
_SAMPLING_INTERVAL_S = 5.0
# What MLflow's tables have room for.
_LONGEST_TAG = _LONGEST_DESCRIPTION = 5000


@lru_cache(maxsize=1)
def _client() -> Any:
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
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow.MlflowClient()


def reset() -> None:
    """Forget the client; for tests that change the settings."""
    _client.cache_clear()


@contextmanager
def _translated() -> Iterator[None]:
    """Turns MLflow's and the network's errors into a line that names the address."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except NightscoreError:
        raise
    except (MlflowException, RequestException) as error:
        where, reason = settings().mlflow_uri, " ".join(str(error).split())[:300]
        if "401" in reason or "403" in reason:
            raise ServiceError(
                f"MLflow at {where} refuses our credentials.",
                "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
            ) from error
        raise ServiceError(
            f"MLflow failed at {where}: {reason}", "Run `nightscore doctor` to see what is wrong."
        ) from error


# --- training runs -----------------------------------------------------------------------------


def start_run(model: str, attempt: str | None, tags: Mapping[str, str]) -> str:
    """Start a training run in the experiment of the model's name; returns its id.

    A run that an earlier try of the same attempt left unfinished is marked failed.
    """
    client = _client()
    with _translated():
        experiment = client.get_experiment_by_name(model)
        identity = experiment.experiment_id if experiment else client.create_experiment(model)
        if attempt:
            for left in _runs_of(identity, attempt):
                if left.info.status == "RUNNING":
                    client.set_terminated(left.info.run_id, "FAILED")
        own = {"mlflow.source.name": "nightscore"} | ({_ATTEMPT: attempt} if attempt else {})
        run = client.create_run(identity, tags={**tags, **own})
        return str(run.info.run_id)


def finished_run(model: str, attempt: str | None) -> str | None:
    """The id of the run that this attempt has finished before, so that a retry can reuse it."""
    if not attempt:
        return None
    with _translated():
        experiment = _client().get_experiment_by_name(model)
        runs = _runs_of(experiment.experiment_id, attempt) if experiment else []
        return next((r.info.run_id for r in runs if r.info.status == "FINISHED"), None)


def _runs_of(experiment_id: str, attempt: str) -> Sequence[Any]:
    quoted = attempt.replace("'", "")
    found: Sequence[Any] = _client().search_runs(
        [experiment_id], filter_string=f"tags.`{_ATTEMPT}` = '{quoted}'"
    )
    return found


def end_run(run_id: str, *, failed: bool = False) -> None:
    """Mark a run finished, or failed."""
    with _translated():
        _client().set_terminated(run_id, "FAILED" if failed else "FINISHED")


def log_params(run_id: str, values: Mapping[str, Any]) -> None:
    """Record parameters of a run."""
    from mlflow.entities import Param

    with _translated():
        _client().log_batch(run_id, params=[Param(k, str(v)[:6000]) for k, v in values.items()])


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    """Record metrics of a run at a step (an epoch); values that are not finite are left out."""
    import math
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(k, float(v), now, step) for k, v in values.items() if math.isfinite(v)]
    with _translated():
        _client().log_batch(run_id, metrics=metrics)


def log_json(run_id: str, name: str, value: Any) -> None:
    """Store a JSON document among a run's artifacts."""
    with _translated():
        _client().log_text(run_id, json.dumps(value, indent=1), name)


def read_json(run_id: str, name: str) -> Any:
    """A JSON document from a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, _translated():
        path = _client().download_artifacts(run_id, name, folder)
        return json.loads(Path(path).read_text(encoding="utf-8"))


def log_figures(run_id: str, figures: Mapping[str, bytes]) -> None:
    """Store PNG pictures, name → bytes, below `plots/` of a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder, _translated():
        for name, content in figures.items():
            (Path(folder) / f"{name}.png").write_bytes(content)
        _client().log_artifacts(run_id, folder, "plots")


def log_table(run_id: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store rows, all of the same columns, as a CSV file below `tables/` of a run's artifacts."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    # Not MLflow's log_table, which appends to what an earlier try of the step has left.
    with _translated():
        _client().log_text(run_id, text.getvalue(), f"tables/{name}.csv")


@contextmanager
def monitored(run_id: str) -> Iterator[None]:
    """Record how busy the machine is (processor, memory, disk, network) as metrics of a run; a GPU
    as well, where the package nvidia-ml-py is installed.

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
    _client()
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
    with _translated():
        _client().log_inputs(run_id, datasets=[entry])


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run; raises DataError when there is no such run."""
    return dict(_run(run_id).data.tags)


def set_run_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Add tags to a run."""
    with _translated():
        for key, value in tags.items():
            _client().set_tag(run_id, key, value)


def run_status(run_id: str) -> str:
    """RUNNING, FINISHED or FAILED; raises DataError when there is no such run."""
    return str(_run(run_id).info.status)


def artifacts(run_id: str) -> list[str]:
    """The names of a run's artifacts at the top."""
    with _translated():
        return [found.path for found in _client().list_artifacts(run_id)]


def _run(run_id: str) -> Any:
    client = _client()
    from mlflow.exceptions import MlflowException

    with _translated():
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise DataError(
                    f"There is no run {run_id!r} in MLflow.",
                    "A version's page in MLflow names the run it came from.",
                ) from None
            raise


def log_program(
    run_id: str, network: "Network", info: ProgramInfo, metadata: Mapping[str, Any]
) -> ProgramInfo:
    """Log a trained network as an exported program (pt2) with signature and input example.

    Returns
    -------
    `info` with the SHA-256 of the stored program.
    """
    import mlflow
    import numpy as np

    height, width = info.input_size
    # A batch of one would be frozen into the program.
    example = np.zeros((2, 3, height, width), dtype=np.uint8)
    _client()
    with quiet_export(), _translated(), mlflow.start_run(run_id=run_id):
        logged = mlflow.pytorch.log_model(
            network,
            name=_MODEL,
            serialization_format="pt2",
            signature=_signature(info),
            input_example=example,
            metadata=dict(metadata),
            pip_requirements=_requirements(),
            # It would start a scoring server in this process, which takes one output only.
            validate_serving_input=False,
        )
    path = _cached_program(run_id)
    _download(logged.model_id, path)
    complete = replace(info, sha256=sha256(path))
    log_json(run_id, _PROGRAM_INFO, asdict(complete) | {"model_id": logged.model_id})
    return complete


def _signature(info: ProgramInfo) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    height, width = info.input_size
    # Without a name, so that MLflow serves a plain array.
    pixels = TensorSpec(np.dtype("uint8"), (-1, 3, height, width))
    single = np.dtype("float32")
    if info.task == "classification":
        outputs = [TensorSpec(single, (-1, len(info.classes)), "probabilities")]
    else:
        outputs = [
            TensorSpec(single, (-1,), "scores"),
            TensorSpec(single, (-1, -1, -1), "heatmaps"),
        ]
        if info.novelty_threshold is not None:
            outputs.append(TensorSpec(single, (-1,), "novelties"))
    return ModelSignature(Schema([pixels]), Schema(outputs))


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("torch", "numpy", "mlflow")]


def _cached_program(run_id: str) -> Path:
    folder = state_folder() / "cache" / "runs" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "model.pt2"


def program_of_run(run_id: str) -> tuple[Path, ProgramInfo]:
    """The program that a training run has logged, before it is registered."""
    stored = read_json(run_id, _PROGRAM_INFO)
    path = _cached_program(run_id)
    if not path.exists():
        _download(stored["model_id"], path)
    return path, _info(stored)


def program_metadata(run_id: str) -> dict[str, Any]:
    """What training recorded with the program that a run has logged."""
    import mlflow

    _client()
    stored = read_json(run_id, _PROGRAM_INFO)
    with _translated():
        return dict(mlflow.models.get_model_info(f"models:/{stored['model_id']}").metadata or {})


def code_version() -> str:
    """The commit this runs from, with a plus sign when files differ; else the package's version."""
    from importlib.metadata import version

    import ml

    folder = Path(ml.__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return described.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"nightscore {version('nightscore')}"


# --- versions and aliases ----------------------------------------------------------------------


def register(run_id: str, model: str, tags: Mapping[str, str], description: str) -> int:
    """Register a run's program as a version of a model; returns its number.

    A run is registered once: a retry finds the version and writes its tags again.
    """
    import mlflow

    client = _client()
    stored = read_json(run_id, _PROGRAM_INFO)
    with _translated():
        version = _version_of_run(model, run_id)
        if version is None:
            made = mlflow.register_model(f"models:/{stored['model_id']}", model)
            version = int(made.version)
        for key, value in {**tags, _SHA256: stored["sha256"]}.items():
            client.set_model_version_tag(model, str(version), key, value[:_LONGEST_TAG])
        client.update_model_version(model, str(version), description[:_LONGEST_DESCRIPTION])
    return version


def _version_of_run(model: str, run_id: str) -> int | None:
    found = _client().search_model_versions(f"name = '{model}'")
    return next((int(v.version) for v in found if v.run_id == run_id), None)


def version_of_alias(model: str, alias: str) -> int | None:
    """The version an alias names; None when the model or the alias is not there."""
    client = _client()
    from mlflow.exceptions import MlflowException

    with _translated():
        try:
            return int(client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def versions(model: str) -> list[int]:
    """The registered versions of a model, in order."""
    client = _client()
    with _translated():
        return sorted(int(v.version) for v in client.search_model_versions(f"name = '{model}'"))


def set_alias(model: str, alias: str, version: int) -> None:
    """Let an alias name a version."""
    client = _client()
    with _translated():
        client.set_registered_model_alias(model, alias, str(version))


def ui_url(model: str, version: int) -> str:
    """The version's page in MLflow."""
    return f"{settings().mlflow_uri.rstrip('/')}/#/models/{quote(model)}/versions/{version}"


def fetch(model: str, version: int, expected_sha256: str | None = None) -> tuple[Path, ProgramInfo]:
    """A version's program file and what is recorded of it; the file is not opened.

    A copy is kept in the state folder. When `expected_sha256` (from our own tables) is that of
    the copy, MLflow is not asked.

    Raises
    ------
    DataError: the version has no program of ours.
    ServiceError: MLflow cannot be reached.
    """
    folder = state_folder() / "cache" / "programs" / model / str(version)
    path, described = folder / "model.pt2", folder / _PROGRAM_INFO
    if expected_sha256 and path.exists() and described.exists():
        kept = _info(json.loads(described.read_text(encoding="utf-8")))
        if kept.sha256 == expected_sha256:
            return path, kept
    client = _client()
    with _translated():
        found = client.get_model_version(model, str(version))
    recorded = found.tags.get(_SHA256)
    if recorded is None:
        raise DataError(f"{model}/{version} was not registered by Nightscore: it has no SHA-256.")
    stored = read_json(found.run_id, _PROGRAM_INFO)
    stored |= {"model": model, "version": version, "sha256": recorded}
    folder.mkdir(parents=True, exist_ok=True)
    _download(stored["model_id"], path)
    partial = described.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(stored), encoding="utf-8")
    partial.replace(described)
    return path, _info(stored)


def _download(model_id: str, path: Path) -> None:
    """Fetch a logged model's program to `path`, whole or not at all, whoever else does the same."""
    import mlflow

    client = _client()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as folder, _translated():
        location = client.get_logged_model(model_id).artifact_location
        Path(
            mlflow.artifacts.download_artifacts(f"{location}/{_PROGRAM_FILE}", dst_path=folder)
        ).replace(path)


def _info(stored: Mapping[str, Any]) -> ProgramInfo:
    return ProgramInfo(
        model=stored["model"],
        version=stored["version"],
        task=stored["task"],
        classes=tuple(stored["classes"]),
        input_size=(stored["input_size"][0], stored["input_size"][1]),
        threshold=stored["threshold"],
        sha256=stored["sha256"],
        synthetic=stored["synthetic"],
        # What was stored before there was a novelty has none.
        novelty_threshold=stored.get("novelty_threshold"),
    )
