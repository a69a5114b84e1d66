"""What the DAGs of Nightscore share: schedules, retries, assets."""

from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, ExceptionRetryPolicy, RetryAction, RetryRule

from ml.errors import ConfigurationError, DataError, RunFailedError

# Wrong data stay wrong: the task fails at once. A service may come back: the task is retried.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[ConfigurationError, DataError, RunFailedError],
                action=RetryAction.FAIL,
                reason="a retry cannot help",
            )
        ]
    ),
}


def nightly(cron: str | None) -> CronTriggerTimetable | None:
    """Return a schedule whose runs have the day before, the night they are for, as logical date.

    The DAGs have no start date, and no run starts immediately. Otherwise Airflow would start a run
    for a past night as soon as a DAG is unpaused.

    Args:
        cron: when the runs start (UTC); None for no schedule.
    """
    if cron is None:
        return None
    return CronTriggerTimetable(
        cron, timezone="UTC", interval=timedelta(days=1), run_immediately=timedelta(0)
    )


def at(cron: str | None) -> CronTriggerTimetable | None:
    """Return a schedule of runs that are for no night.

    Args:
        cron: when the runs start (UTC); None for no schedule.
    """
    if cron is None:
        return None
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0))


def champion_asset(model: str) -> Asset:
    """Return the asset that a promotion of the model updates.

    Airflow leaves the URI of a scheme that begins with `x-` as it is. For other schemes it imports
    the assets of all providers, boto3 among them.
    """
    return Asset(name=f"champion of {model}", uri=f"x-nightscore://models/{model}")
