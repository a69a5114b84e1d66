"""Streams, models and versions that retention may delete, made without training."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

from mlflow import register_model

from ml.database.connection import transaction
from ml.database.tables import ModelVersion, ScoringRun, ScoringRunModel
from ml.registry.client import mlflow_client, stderr_logged

CONFIGURATION = """\
storage: {bucket}
streams: {{}}
models: {{}}
"""
ARTIFACT = b"x" * 1000


def today() -> date:
    return datetime.now(UTC).date()


def in_days(days: int) -> date:
    """A day to come, from which what is made now is old."""
    return today() + timedelta(days=days)


@dataclass(frozen=True)
class Version:
    """A registered version, its run and its logged model."""

    number: int
    run_id: str
    model_id: str
    snapshot_uri: str


def logged_run(model: str, folder: Path, snapshot_uri: str, **tags: str) -> tuple[str, str]:
    """A finished training run, and the model that it has logged; each has an artifact."""
    client = mlflow_client()
    found = client.get_experiment_by_name(model)
    experiment = found.experiment_id if found else client.create_experiment(model)
    run = client.create_run(
        experiment, tags={"nightscore.model": model, "nightscore.snapshot": snapshot_uri, **tags}
    )
    run_id = run.info.run_id
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "model.pt2").write_bytes(ARTIFACT)
    client.log_text(run_id, "{}", "program.json")
    logged = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    client.set_terminated(run_id, "FINISHED")
    return run_id, logged.model_id


def registered(model: str, folder: Path, snapshot_uri: str = "") -> Version:
    """A registered version of a model, in MLflow and in the tables."""
    mlflow_client()
    snapshot_uri = snapshot_uri or f"s3://none/snapshots/{model}/{uuid4().hex}.parquet"
    run_id, model_id = logged_run(model, folder, snapshot_uri)
    with stderr_logged():
        entry = register_model(f"models:/{model_id}", model, tags={"nightscore.sha256": "0" * 64})
    with transaction() as session:
        session.add(
            ModelVersion(
                model=model,
                version=int(entry.version),
                task="classification",
                mlflow_run_id=run_id,
                program_sha256="0" * 64,
                snapshot_uri=snapshot_uri,
                metrics={},
                classes=["a", "b"],
                reference_edges=[0.5],
                reference_shares=[0.5, 0.5],
                synthetic=True,
                gate_passed=True,
                gate_reason="made for a test",
            )
        )
    return Version(int(entry.version), run_id, model_id, snapshot_uri)


def scoring_run(
    stream: str,
    night: date,
    status: str = "finished",
    lookback: int = 0,
    report_uri: str | None = None,
    **pinned: int,
) -> UUID:
    """A scoring run of a night, with the versions that it was opened with; returns its id."""
    run_id = uuid4()
    with transaction() as session:
        session.add(
            ScoringRun(
                run_id=run_id,
                trigger=str(run_id),
                stream=stream,
                night=night,
                status=status,
                lookback_from=night - timedelta(days=lookback),
                max_rejected_share=0.5,
                shard_size=10,
                report_uri=report_uri,
            )
        )
        session.flush()
        for model, version in pinned.items():
            session.add(ScoringRunModel(run_id=run_id, model=model, version=version))
    return run_id
