"""The steps of the DAG `maintain`. They can be repeated, and none deletes what has no limit."""

import getpass
import logging
from collections import Counter
from datetime import UTC, datetime

from ml.config.loading import configuration
from ml.errors import ServiceError
from ml.retention import prune as pruning
from ml.retention import upcoming
from ml.retention.policy import policy_of
from ml.settings import settings

log = logging.getLogger(__name__)


def make_partitions() -> list[str]:
    """Make the partitions of the nights to come; returns those nights."""
    return [night.isoformat() for night in upcoming.make_partitions(datetime.now(UTC).date())]


def prune(area: str) -> dict[str, int]:
    """Delete what has passed its limit in one area: `database`, `objects` or `registry`.

    Returns:
        How many candidates were deleted, and kept since they were in use again.

    Raises:
        ServiceError: Some could not be deleted; the others were.
    """
    limits = policy_of(configuration())
    if limits.is_empty():
        log.info("No limit is set in nightscore.yaml")
        return {"deleted": 0, "kept": 0}
    planned = pruning.plan(limits, datetime.now(UTC).date(), areas=[area])
    counts: Counter[str] = Counter()
    failures = []
    for outcome in pruning.delete_all(planned, getpass.getuser()):
        counts[outcome.state] += 1
        if outcome.state == "failed":
            failures.append(f"{outcome.candidate.name}: {outcome.detail}")
    if failures:
        raise ServiceError(
            f"{len(failures)} of {counts.total()} deletions failed, first {failures[0]}",
            "reporting.maintenance has them all.",
        )
    return {"deleted": counts["deleted"], "kept": counts["kept"]}


def analyse() -> bool:
    """Gather the statistics of the tables by night.

    Returns:
        Whether it was done; not while a run is open, and not without a maintainer.
    """
    if not settings().has_maintainer():
        log.info("NIGHTSCORE_MAINTAINER_URL is not set")
        return False
    return upcoming.analyse()
