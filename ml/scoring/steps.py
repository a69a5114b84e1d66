"""The steps of a scoring DAG, in order; each can run alone and be repeated.

Values between the steps are small and have a JSON form: a run id, shard numbers, a URI.
"""

import logging
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID

from ml.errors import NightscoreError, RunFailedError, ServiceError
from ml.scoring import ATTEMPTS

log = logging.getLogger(__name__)


def open_run(stream: str, night: str, trigger: str | None = None) -> str:
    """Open a run and pin its versions; returns the run id. See `ml.scoring.run.open_run`."""
    from ml.scoring import run

    return str(run.open_run(stream, date.fromisoformat(night), trigger))


def discover(run_id: str) -> int:
    """Write the run's manifest; returns the number of new images."""
    from ml.scoring import discovery

    return discovery.discover(UUID(run_id))


def plan_shards(run_id: str) -> list[int]:
    """The numbers of the shards to score."""
    from ml.scoring import discovery

    return discovery.plan_shards(UUID(run_id))


def score_shard(run_id: str, shard: int) -> dict[str, int]:
    """Score one shard; returns counts of results. See `ml.scoring.shard.score_shard`."""
    from ml.scoring import shard as shards

    return shards.score_shard(UUID(run_id), shard)


def reconcile(run_id: str) -> dict[str, Any]:
    """Count and set the status; raises RunFailedError. See `ml.scoring.reconcile.reconcile`."""
    from ml.scoring import reconcile as reconciliation

    return reconciliation.reconcile(UUID(run_id))


def report(run_id: str) -> str:
    """Write the run's report; returns its URI. See `ml.report.nightly.write`."""
    from ml.report import nightly

    return nightly.write(UUID(run_id))


def require_finished(run_id: str) -> None:
    """Raise RunFailedError unless the run ended well."""
    from ml.scoring import reconcile as reconciliation

    reconciliation.require_finished(UUID(run_id))


def score_night(
    stream: str, night: str, on_images: Callable[[int, int], None] = lambda count, total: None
) -> dict[str, Any]:
    """All the steps in this process: what the DAG does, without Airflow.

    A shard is tried three times, as in Airflow; when it fails for good the others are scored all
    the same. `on_images` hears how many images were scored since the last time, and how many there
    are.

    Returns:
        run_id, report_uri, and what `reconcile` returns: discovered, scored, rejected, anomalies,
        to_review, synthetic, seconds, engine_images_per_second.

    Raises:
        RunFailedError: a shard failed, or the run did (see `reconcile`); after the report was
            written.
    """
    from ml.scoring import run as runs

    runs.close_abandoned(stream, date.fromisoformat(night))
    run_id = open_run(stream, night)
    with runs.alive(UUID(run_id)):
        failure = _score_images(run_id, on_images)
        try:
            counts = reconcile(run_id)
        except RunFailedError as failed:
            report(run_id)
            raise RunFailedError(failed.message, str(failure or failed.hint)) from failure
        return {"run_id": run_id, **counts, "report_uri": report(run_id)}


def _score_images(run_id: str, on_images: Callable[[int, int], None]) -> NightscoreError | None:
    """Discover and score a run's images; returns the last failure, if there was one."""
    from ml.timeouts import retrying

    failure: NightscoreError | None = None
    again = retrying(lambda error: isinstance(error, ServiceError), max_attempts=ATTEMPTS)
    try:
        total = again(discover, run_id)
        on_images(0, total)
        planned = again(plan_shards, run_id)
    except NightscoreError as error:
        return error  # the run is counted and closed all the same
    for number in planned:
        # Not before: a night without new images needs nothing of what decodes and scores.
        from ml.scoring import shard as shards

        try:
            again(shards.score_shard, UUID(run_id), number, lambda count: on_images(count, total))
        except NightscoreError as error:
            failure = error
            log.error("Shard %s failed: %s", number, error)
    return failure
