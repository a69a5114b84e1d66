"""What the DAGs of Nightscore share: schedules, retries, connections."""

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, CronTriggerTimetable, ExceptionRetryPolicy, RetryAction, RetryRule

from ml.errors import ConfigurationError, DataError, RunFailed

# Wrong data stay wrong: fail at once. A service may come back: wait and try again.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=20),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "retry_policy": ExceptionRetryPolicy(
        rules=[
            RetryRule(
                exception=[ConfigurationError, DataError, RunFailed],
                action=RetryAction.FAIL,
                reason="a retry cannot help",
            )
        ]
    ),
}

# Connections that a platform engineer may keep in Airflow instead of the environment, with the
# variable of `ml.settings` that each stands for.
CONNECTIONS = {
    "nightscore_postgres": "NIGHTSCORE_DATABASE_URL",
    "nightscore_mlflow": "MLFLOW_TRACKING_URI",
}


def nightly(cron: str | None) -> CronTriggerTimetable | None:
    """A schedule whose runs carry the day before as logical date: the night they are for.

    The DAGs have no start date, and nothing runs immediately: else Airflow would start a run for
    a night in the past as soon as a DAG is unpaused.
    """
    if cron is None:
        return None
    return CronTriggerTimetable(
        cron, timezone="UTC", interval=timedelta(days=1), run_immediately=timedelta(0)
    )


def champion(model: str) -> Asset:
    """The asset that a promotion of the model updates."""
    return Asset(name=f"champion of {model}", uri=f"nightscore://models/{model}")


def connect() -> None:
    """Give `ml.settings` what Airflow's connections hold and the environment does not.

    Called by a task before it touches a service; `ml` itself knows nothing of Airflow.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowRuntimeError

    for connection_id, variable in CONNECTIONS.items():
        if variable in os.environ or _in_stack_env(variable):
            continue
        try:
            os.environ[variable] = _url(Connection.get(connection_id))
        except AirflowRuntimeError:
            continue  # the connection is not defined


def _in_stack_env(variable: str) -> bool:
    from ml.settings import STACK_ENV, state_folder

    path = state_folder() / STACK_ENV
    return path.exists() and f"{variable}=" in path.read_text(encoding="utf-8")


def _url(connection: Any) -> str:
    uri = connection.get_uri()
    return uri.replace("postgres://", "postgresql+psycopg2://", 1)
