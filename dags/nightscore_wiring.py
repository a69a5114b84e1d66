"""What the DAGs of Nightscore share: schedules, retries, connections."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

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


def champion_asset(model: str) -> Asset:
    """Return the asset that a promotion of the model updates.

    Airflow leaves the URI of a scheme that begins with `x-` as it is. For other schemes it imports
    the assets of all providers, boto3 among them.
    """
    return Asset(name=f"champion of {model}", uri=f"x-nightscore://models/{model}")


def export_connections() -> None:
    """Put what Airflow's connections say into the environment, which `ml.settings` reads.

    A task calls it before it uses a service; `ml` itself does not know Airflow. The connections are
    `nightscore_postgres`, `nightscore_s3` and `nightscore_mlflow`. A service that the environment
    already names keeps its variables.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

    for connection_id, (marker, variables) in _CONNECTIONS.items():
        # All of a service comes from the environment or from the connection, never half from each.
        if _is_set(marker):
            continue
        try:
            values = variables(Connection.get(connection_id))
        except (AirflowNotFoundException, AirflowRuntimeError):
            continue  # It is not defined. Code that needs the service reports what is missing.
        os.environ.update({name: value for name, value in values.items() if value})


def _postgres_variables(connection: Any) -> dict[str, str]:
    address = f"{connection.host}:{connection.port or 5432}/{connection.schema}"
    user, password = (
        quote(text or "", safe="") for text in (connection.login, connection.password)
    )
    return {"NIGHTSCORE_DATABASE_URL": f"postgresql+psycopg2://{user}:{password}@{address}"}


def _s3_variables(connection: Any) -> dict[str, str]:
    extra = connection.extra_dejson
    return {
        "AWS_ACCESS_KEY_ID": connection.login or "",
        "AWS_SECRET_ACCESS_KEY": connection.password or "",
        "AWS_ENDPOINT_URL": extra.get("endpoint_url", ""),
        "AWS_REGION": extra.get("region_name", ""),
    }


def _mlflow_variables(connection: Any) -> dict[str, str]:
    port = f":{connection.port}" if connection.port else ""
    return {
        "MLFLOW_TRACKING_URI": f"{connection.schema or 'http'}://{connection.host}{port}",
        "MLFLOW_TRACKING_USERNAME": connection.login or "",
        "MLFLOW_TRACKING_PASSWORD": connection.password or "",
    }


# Connection → the variable that shows that its service is in the environment, and the function that
# turns the connection into variables.
_CONNECTIONS: dict[str, tuple[str, Callable[[Any], dict[str, str]]]] = {
    "nightscore_postgres": ("NIGHTSCORE_DATABASE_URL", _postgres_variables),
    "nightscore_s3": ("AWS_ACCESS_KEY_ID", _s3_variables),
    "nightscore_mlflow": ("MLFLOW_TRACKING_URI", _mlflow_variables),
}


def _is_set(variable: str) -> bool:
    from ml.settings import STACK_ENV, state_folder

    path = state_folder() / STACK_ENV
    return variable in os.environ or (
        path.exists() and f"{variable}=" in path.read_text(encoding="utf-8")
    )
