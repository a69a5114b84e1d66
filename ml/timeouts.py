"""How long Nightscore waits for a service, and how often it asks again: for every client, in one
place.

Retries are bounded, and their waits grow and are drawn at random (jitter), so that many workers do
not come back at the same moment. They bridge a restart; a longer outage fails the step, which
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

_LONGEST_WAIT_S = 5.0
_LONGEST_REASON = 200


class ClientLimits(BaseSettings):
    """`NIGHTSCORE_CONNECT_TIMEOUT_S` and the like; the defaults suit a data centre."""

    model_config = SettingsConfigDict(env_prefix="NIGHTSCORE_", extra="ignore", frozen=True)

    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(60, gt=0, description="without a byte of an answer")
    retry_for_s: float = Field(30, ge=0, description="of a request that failed")
    connect_for_s: float = Field(10, ge=0, description="of a Postgres that is not there")
    statement_timeout_s: float = Field(3600, gt=0, description="of a statement in Postgres")

    @property
    def retries(self) -> int:
        """Retries whose waits begin at a second, double, and come to `retry_for_s` in all."""
        return int(math.log2(self.retry_for_s + 1))

    def obstore(self) -> dict[str, Any]:
        """Options of an obstore store; its waits have jitter."""
        return {
            "client_options": {
                "timeout": timedelta(seconds=self.read_timeout_s),
                "connect_timeout": timedelta(seconds=self.connect_timeout_s),
            },
            "retry_config": {
                # Enough short waits to fill the time, which is the limit that counts.
                "max_retries": 10 + int(self.retry_for_s / _LONGEST_WAIT_S),
                "retry_timeout": timedelta(seconds=self.retry_for_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=_LONGEST_WAIT_S),
                    "base": 2,
                },
            }
            if self.retry_for_s
            else {"max_retries": 0},
        }

    def boto(self) -> dict[str, Any]:
        """Arguments of a botocore `Config`; the mode `standard` waits with jitter."""
        return {
            "connect_timeout": self.connect_timeout_s,
            "read_timeout": self.read_timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": 1 + self.retries},
        }

    def mlflow(self) -> dict[str, str]:
        """Variables of the environment for MLflow's client."""
        return {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(math.ceil(self.read_timeout_s)),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(min(self.retries, 10)),
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "1.0",
        }

    def postgres(self) -> dict[str, Any]:
        """Arguments of a connection: a server that falls silent is noticed, and a process that
        hangs does not keep its locks for ever."""
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
    may_pass: Callable[[BaseException], bool],
    *,
    for_s: float = math.inf,
    attempts: int = sys.maxsize,
) -> Retrying:
    """Calls a function again while it raises an error that may pass, at most for so many seconds
    and so often; then the error is raised as it is."""
    return Retrying(
        retry=retry_if_exception(may_pass),
        stop=stop_any(stop_after_delay(for_s), stop_after_attempt(attempts)),
        wait=wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT_S),
        before_sleep=_log_failure,
        reraise=True,
    )


def _log_failure(state: RetryCallState) -> None:
    """The first failure as a warning, for whoever waits; those after it say nothing new."""
    error = state.outcome.exception() if state.outcome else None
    reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
    level = logging.WARNING if state.attempt_number == 1 else logging.INFO
    log.log(level, "Trying again in %.1f s: %s", state.upcoming_sleep, reason)


@lru_cache(maxsize=1)
def network() -> ClientLimits:
    """The limits of this process, read once; raises ConfigurationError for what is no number."""
    try:
        return ClientLimits()
    except ValidationError as error:
        wrong = [
            f"NIGHTSCORE_{str(problem['loc'][0]).upper()}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ConfigurationError("; ".join(wrong) + ".") from None
