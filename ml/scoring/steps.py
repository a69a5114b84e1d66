"""The steps of a scoring DAG, in order; each can run alone and be repeated.

A step takes and returns values that have a JSON form: dates and run ids as text, shard numbers, a
URI. A DAG passes them on from step to step. `score_night` runs all the steps in one process.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any
from uuid import UUID

from ml.errors import NightscoreError, RunFailedError, ServiceError
from ml.report import nightly
from ml.scoring import SHARD_ATTEMPTS, discovery, groups, reconciliation, runs
from ml.timeouts import retrying

log = logging.getLogger(__name__)

_retry = retrying(lambda error: isinstance(error, ServiceError), max_attempts=SHARD_ATTEMPTS)


def open_run(stream: str, night: str, trigger: str | None = None) -> str:
    """Open a run and pin its versions; returns the run id. See `ml.scoring.runs.open_run`."""
    return str(runs.open_run(stream, date.fromisoformat(night), trigger))


def discover(run_id: str) -> int:
    """Write the run's manifest; returns the number of new images."""
    return discovery.discover(UUID(run_id))


def plan_shards(run_id: str) -> list[int]:
    """Return the numbers of the shards to score."""
    return discovery.plan_shards(UUID(run_id))


def plan_groups(run_id: str) -> list[list[int]]:
    """Return the shards to score, a group for each task. See `ml.scoring.groups.plan_groups`."""
    return groups.plan_groups(UUID(run_id))


def score_shard(run_id: str, number: int) -> dict[str, int]:
    """Score one shard; returns the numbers of results. See `ml.scoring.shard.score_shard`."""
    # Not at the top: a night without new images needs nothing of what decodes and scores.
    from ml.scoring import shard

    return shard.score_shard(UUID(run_id), number)


def score_shards(run_id: str, numbers: list[int]) -> dict[str, int]:
    """Score a group; returns the numbers of results. See `ml.scoring.shards.score_shards`."""
    from ml.scoring import shards

    return shards.score_shards(UUID(run_id), numbers)


def reconcile(run_id: str) -> dict[str, Any]:
    """Count the results and set the run's status. See `ml.scoring.reconciliation.reconcile`."""
    return reconciliation.reconcile(UUID(run_id))


def report(run_id: str) -> str:
    """Write the run's report; returns its URI. See `ml.report.nightly.write`."""
    return nightly.write(UUID(run_id))


def require_finished(run_id: str) -> None:
    """Check that a run is finished. See `ml.scoring.reconciliation.require_finished`."""
    reconciliation.require_finished(UUID(run_id))


def score_night(
    stream: str, night: str, on_images: Callable[[int, int], None] = lambda count, total: None
) -> dict[str, Any]:
    """Run all the steps in this process, as the DAG does in Airflow.

    The programs are loaded once. A shard is tried `SHARD_ATTEMPTS` times. When it fails for good,
    the other shards are still scored.

    Args:
        stream: a stream of nightscore.yaml.
        night: the night's date, YYYY-MM-DD.
        on_images: called with the number of images scored since the last call, and the number of
            images in all.

    Returns:
        `run_id`, `report_uri`, and what `reconcile` returns: discovered, scored, rejected,
        anomalies, to_review, synthetic, seconds, engine_images_per_second.

    Raises:
        RunFailedError: a shard failed, or the run did (see `reconcile`). The report is written
            before it is raised.
    """
    runs.close_abandoned(stream, date.fromisoformat(night))
    run_id = open_run(stream, night)
    with runs.liveness_lock(UUID(run_id)):
        failure = _score_images(run_id, on_images)
        try:
            counts = reconcile(run_id)
        except RunFailedError as error:
            report(run_id)
            raise RunFailedError(error.message, str(failure or error.hint)) from failure
        return {"run_id": run_id, **counts, "report_uri": report(run_id)}


def _score_images(run_id: str, on_images: Callable[[int, int], None]) -> NightscoreError | None:
    """Discover and score a run's images; returns the last failure, None if there was none."""
    try:
        total = _retry(discover, run_id)
        on_images(0, total)
        numbers = _retry(plan_shards, run_id)
    except NightscoreError as error:
        return error  # the caller still counts what there is and closes the run
    return _score_each(run_id, numbers, lambda count: on_images(count, total)) if numbers else None


def _score_each(
    run_id: str, numbers: Iterable[int], on_images: Callable[[int], None]
) -> NightscoreError | None:
    """Score shards with the programs loaded once; returns the last failure."""
    from ml.scoring import shard, shards

    failure: NightscoreError | None = None
    load = shards.load_once()
    for number in numbers:
        try:
            _retry(shard.score_shard, UUID(run_id), number, on_images, load)
        except NightscoreError as error:
            failure = error
            log.error("Shard %s failed: %s", number, error)
    return failure
