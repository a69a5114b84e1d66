"""Timeouts and retries of all clients: of S3, MLflow, Airflow and Postgres.

Retries are bounded. Their waits grow and are random (jitter), so that many workers do not come back
at the same moment. They bridge the restart of a service; a longer outage fails the step, which
Airflow tries again (`dags/nightscore_wiring.py`).
"""

import logging
import math
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    wait_random_exponential,
)

from ml.errors import ConfigurationError

log = logging.getLogger(__name__)

_MAX_WAIT_S = 5.0
_MAX_REASON_LENGTH = 200


class ClientLimits(BaseSettings):
    """Time limits of the clients, from `NIGHTSCORE_CONNECT_TIMEOUT_S` and the like.

    The defaults suit services in one data centre.
    """

    model_config = SettingsConfigDict(env_prefix="NIGHTSCORE_", extra="ignore", frozen=True)

    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(60, gt=0, description="without a byte of a response")
    retry_for_s: float = Field(30, ge=0, description="of a request that failed")
    connect_for_s: float = Field(10, ge=0, description="of a connection to Postgres")
    statement_timeout_s: float = Field(3600, gt=0, description="of a statement in Postgres")
    lock_timeout_s: float = Field(2, gt=0, description="of a migration's wait for a lock")
    migrate_for_s: float = Field(600, ge=0, description="of a migration that others hold up")

    @property
    def retries(self) -> int:
        """The number of retries whose waits (1, 2, 4, ... s) come to `retry_for_s` in all."""
        return int(math.log2(self.retry_for_s + 1))

    def obstore_options(self) -> dict[str, Any]:
        """Return options of an obstore store, whose waits have jitter."""
        return {
            "client_options": {
                "timeout": timedelta(seconds=self.read_timeout_s),
                "connect_timeout": timedelta(seconds=self.connect_timeout_s),
            },
            "retry_config": {
                # Enough for `retry_timeout` to be the limit that ends the retries.
                "max_retries": 10 + int(self.retry_for_s / _MAX_WAIT_S),
                "retry_timeout": timedelta(seconds=self.retry_for_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=_MAX_WAIT_S),
                    "base": 2,
                },
            }
            if self.retry_for_s
            else {"max_retries": 0},
        }

    def boto_config(self) -> dict[str, Any]:
        """Return arguments of a botocore `Config`; the mode `standard` waits with jitter."""
        return {
            "connect_timeout": self.connect_timeout_s,
            "read_timeout": self.read_timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": 1 + self.retries},
        }

    def mlflow_environment(self) -> dict[str, str]:
        """Return environment variables for MLflow's client."""
        return {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(self.read_timeout_s)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(min(self.retries, 10)),
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "1.0",
        }

    def postgres_arguments(self) -> dict[str, Any]:
        """Return arguments of a psycopg2 connection.

        They detect a server that no longer responds, and release the locks of a process that hangs.
        """
        limit_ms = math.ceil(self.statement_timeout_s * 1000)
        return {
            "connect_timeout": math.ceil(self.connect_timeout_s),
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
            "tcp_user_timeout": math.ceil(self.read_timeout_s * 1000),
            "options": f"-c statement_timeout={limit_ms}"
            f" -c idle_in_transaction_session_timeout={limit_ms}",
        }


def retrying(
    is_transient: Callable[[BaseException], bool],
    *,
    timeout_s: float = math.inf,
    max_attempts: int = sys.maxsize,
) -> Retrying:
    """Return a caller of functions that calls again after transient errors.

    Args:
        is_transient: Says whether the function may succeed after an error when called again.
        timeout_s: Seconds from the first call, after which an error is raised as it is.
        max_attempts: Number of calls, after which an error is raised as it is.

    Returns:
        A callable that takes the function and its arguments.
    """
    return Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_any(stop_after_delay(timeout_s), stop_after_attempt(max_attempts)),
        wait=wait_random_exponential(multiplier=0.2, max=_MAX_WAIT_S),
        before_sleep=_log_failure,
        reraise=True,
    )


def _log_failure(state: RetryCallState) -> None:
    """Log the first failure as a warning, and those after it, which add little, as information."""
    error = state.outcome.exception() if state.outcome else None
    reason = " ".join(str(error).split())[:_MAX_REASON_LENGTH] or type(error).__name__
    level = logging.WARNING if state.attempt_number == 1 else logging.INFO
    log.log(level, "Trying again in %.1f s: %s", state.upcoming_sleep, reason)


@lru_cache(maxsize=1)
def client_limits() -> ClientLimits:
    """Return the limits of this process, which are read once.

    Raises:
        ConfigurationError: A variable is not a number, or is out of its range.
    """
    try:
        return ClientLimits()
    except ValidationError as error:
        problems = [
            f"NIGHTSCORE_{str(problem['loc'][0]).upper()}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigurationError("; ".join(problems) + ".") from None
