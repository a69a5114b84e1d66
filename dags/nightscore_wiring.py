"""What the DAGs of Nightscore share: schedules, retries, priorities, connections."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.sdk import Asset, CronTriggerTimetable, ExceptionRetryPolicy, RetryAction, RetryRule

from ml.errors import ConfigurationError, DataError, RunFailedError

# Wrong data stay wrong: fail at once. A service may come back: wait and try again.
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

# Who gets a slot of the pool first: a night before everything else, and a trained version before
# another training. Airflow's own rule would let a task with more tasks after it go first.
_PRIORITIES = {"score": 3, "evaluate": 2, "train": 1}


def gpu(step: str) -> dict[str, Any]:
    """Arguments of a task that takes a slot of the pool `gpu`; `step` sets its priority."""
    return {"pool": "gpu", "priority_weight": _PRIORITIES[step], "weight_rule": "absolute"}


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

    Called by a task before it touches a service; `ml` itself knows nothing of Airflow. The
    connections are `nightscore_postgres`, `nightscore_s3` and `nightscore_mlflow`.
    """
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

    for connection_id, (variable, variables) in _CONNECTIONS.items():
        # A service is named in one place, the environment or the connection, never half in each.
        if _is_set(variable):
            continue
        try:
            found = variables(Connection.get(connection_id))
        except (AirflowNotFoundException, AirflowRuntimeError):
            continue  # it is not defined; whoever needs it says so
        os.environ.update({name: value for name, value in found.items() if value})


def _postgres(found: Any) -> dict[str, str]:
    address = f"{found.host}:{found.port or 5432}/{found.schema}"
    login = f"{quote(found.login or '', safe='')}:{quote(found.password or '', safe='')}"
    return {"NIGHTSCORE_DATABASE_URL": f"postgresql+psycopg2://{login}@{address}"}


def _s3(found: Any) -> dict[str, str]:
    extra = found.extra_dejson
    return {
        "AWS_ACCESS_KEY_ID": found.login or "",
        "AWS_SECRET_ACCESS_KEY": found.password or "",
        "AWS_ENDPOINT_URL": extra.get("endpoint_url", ""),
        "AWS_REGION": extra.get("region_name", ""),
    }


def _mlflow(found: Any) -> dict[str, str]:
    port = f":{found.port}" if found.port else ""
    return {
        "MLFLOW_TRACKING_URI": f"{found.schema or 'http'}://{found.host}{port}",
        "MLFLOW_TRACKING_USERNAME": found.login or "",
        "MLFLOW_TRACKING_PASSWORD": found.password or "",
    }


# Connection → the variable that says its service is in the environment, and what it stands for.
_CONNECTIONS: dict[str, tuple[str, Callable[[Any], dict[str, str]]]] = {
    "nightscore_postgres": ("NIGHTSCORE_DATABASE_URL", _postgres),
    "nightscore_s3": ("AWS_ACCESS_KEY_ID", _s3),
    "nightscore_mlflow": ("MLFLOW_TRACKING_URI", _mlflow),
}


def _is_set(variable: str) -> bool:
    from ml.settings import STACK_ENV, state_folder

    path = state_folder() / STACK_ENV
    return variable in os.environ or (
        path.exists() and f"{variable}=" in path.read_text(encoding="utf-8")
    )
