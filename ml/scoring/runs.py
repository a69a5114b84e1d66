"""A scoring run: one attempt at a night, with its model versions pinned when it opens."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.database.connection import engine, rows, transaction
from ml.database.tables import FAILED, OPEN, ScoringRun, ScoringRunModel
from ml.errors import DataError
from ml.registry import promotion
from ml.storage.nights import night_range

log = logging.getLogger(__name__)

# The trigger of a run that the command line opened begins with it.
_MANUAL = "manual-"
_LOCK = sa.text("SELECT pg_advisory_lock_shared(hashtext('run'), hashtext(:run_id))")
_TRY_LOCK = sa.text("SELECT pg_try_advisory_xact_lock(hashtext('run'), hashtext(:run_id))")


def open_run(stream_name: str, night: date, trigger: str | None = None) -> UUID:
    """Open a run for a night and pin the champion of each model of the stream.

    Args:
        stream_name: a stream of nightscore.yaml.
        night: the night to score.
        trigger: who asks, for instance Airflow's run id. Opening again for the same trigger returns
            the same run, with the versions that it was opened with. So a task that is retried or
            cleared cannot mix versions. None for a new run.

    Returns:
        The run's id.

    Raises:
        ConfigurationError: there is no such stream.
        DataError: a model of the stream has no champion yet.
        ServiceError: Postgres or MLflow failed.
    """
    stream = configuration().stream(stream_name)
    trigger = trigger or f"{_MANUAL}{uuid4()}"
    with transaction() as session:
        run = session.scalar(sa.select(ScoringRun).where(ScoringRun.trigger == trigger))
        if run is not None:
            log.info("Run %s was opened before; its versions stay pinned", run.run_id)
            run.status, run.error, run.finished_at = OPEN, None, None
            return run.run_id
    versions = {model: _champion(model) for model in stream.models}
    with transaction() as session:
        run_id: UUID | None = session.execute(
            insert(ScoringRun)
            .values(
                run_id=uuid4(),
                trigger=trigger,
                stream=stream_name,
                night=night,
                status=OPEN,
                lookback_from=night - timedelta(days=stream.lookback_nights),
                max_rejected_share=stream.max_rejected_share,
                shard_size=stream.shard_size,
            )
            .on_conflict_do_nothing()
            .returning(ScoringRun.run_id)
        ).scalar_one_or_none()
        if run_id is None:  # another try for the same trigger was faster
            return session.scalars(
                sa.select(ScoringRun.run_id).where(ScoringRun.trigger == trigger)
            ).one()
        session.execute(
            insert(ScoringRunModel).values(
                [{"run_id": run_id, "model": m, "version": v} for m, v in versions.items()]
            )
        )
    log.info("Opened run %s of %s for %s with %s", run_id, stream_name, night, versions)
    return run_id


def _champion(model: str) -> int:
    version = promotion.champion(model)
    if version is None:
        raise DataError(
            f"Model {model!r} has no champion to score with.",
            f"Train one first: run the DAG retrain_{model}, or `nightscore train {model}`.",
        )
    return version


@contextmanager
def liveness_lock(run_id: UUID) -> Iterator[None]:
    """Hold an advisory lock that shows that a process works on the run.

    Postgres releases the lock when the process ends, however it ends.
    """
    with engine().connect() as connection:
        # The connection must not go back to the pool with the lock.
        connection.detach()
        connection.execute(_LOCK, {"run_id": str(run_id)})
        connection.commit()
        yield


def close_abandoned(stream: str, night: date) -> None:
    """Mark failed the open runs of a night whose process, a command line, has died.

    Raises:
        ConfigurationError: there is no such stream.
    """
    configuration().stream(stream)
    with transaction() as session:
        open_runs = session.scalars(
            sa.select(ScoringRun).where(
                ScoringRun.stream == stream,
                ScoringRun.night == night,
                ScoringRun.status == OPEN,
                ScoringRun.trigger.startswith(_MANUAL),
            )
        )
        for run in open_runs:
            if session.scalar(_TRY_LOCK, {"run_id": str(run.run_id)}):
                run.status, run.finished_at = FAILED, sa.func.clock_timestamp()
                run.error = "its process ended before the run was closed"
                log.warning("Run %s is marked failed: %s", run.run_id, run.error)


def get_run(session: Session, run_id: UUID) -> ScoringRun:
    """Return a run.

    Raises:
        DataError: there is no such run.
    """
    run = session.get(ScoringRun, run_id)
    if run is None:
        raise DataError(f"There is no scoring run {run_id}.")
    return run


def pinned_versions(session: Session, run_id: UUID) -> dict[str, int]:
    """Return the versions that a run was opened with, model → version."""
    pinned = session.scalars(sa.select(ScoringRunModel).where(ScoringRunModel.run_id == run_id))
    return {row.model: row.version for row in pinned}


def nights(run: ScoringRun) -> list[date]:
    """Return the nights of the images that a run may have to score, in ascending order."""
    return night_range(run.lookback_from, run.night)


def manifest_nights(session: Session, run_id: UUID) -> list[date]:
    """Return the nights of the images that a run has to score, in ascending order.

    Raises:
        DataError: there is no such run.
    """
    may_be = nights(get_run(session, run_id))
    return [
        row["night"] for row in rows(session, "report/sql/nights", run_id=run_id, nights=may_be)
    ]


def newest_run(stream: str, night: date) -> UUID:
    """Return the id of the newest run of a night.

    Raises:
        DataError: the night was never scored.
    """
    with transaction() as session:
        run_id = session.scalar(
            sa.select(ScoringRun.run_id)
            .where(ScoringRun.stream == stream, ScoringRun.night == night)
            .order_by(ScoringRun.opened_at.desc())
            .limit(1)
        )
    if run_id is None:
        raise DataError(
            f"Stream {stream!r} has no scoring run for {night}.",
            f"Score it with `nightscore score {stream} --date {night}`.",
        )
    return run_id
