"""MLflow's client with our credentials, and its errors in words of ours."""

import io
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from ml.errors import DataError, NightscoreError, ServiceError
from ml.settings import settings
from ml.timeouts import client_limits

# Read when MLflow is imported, whoever does it first: its messages go where this process's log
# goes, at their level, and not to standard error.
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")

# As MLflow and requests word a status; an id may hold the same digits.
_REFUSED = re.compile(r"error code 40[13]\b|\b40[13] (Client )?Error")


@lru_cache(maxsize=1)
def mlflow_client() -> Any:
    """An MLflow client with our credentials; MLflow reads them from the process environment."""
    current = settings()
    os.environ["MLFLOW_TRACKING_URI"] = current.require_mlflow_uri()
    if current.mlflow_username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = current.mlflow_username
        os.environ["MLFLOW_TRACKING_PASSWORD"] = current.mlflow_password.get_secret_value()
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **client_limits().mlflow_environment(),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow.MlflowClient()


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turns MLflow's and the network's errors into a line that names the address."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except NightscoreError:
        raise
    except (MlflowException, RequestException) as error:
        where, reason = _address(), " ".join(str(error).split())[:300]
        if _REFUSED.search(reason):
            raise refused(where) from error
        raise failed(where, reason) from error


def refused(where: str) -> ServiceError:
    """The error for a login that the MLflow at an address does not take."""
    return ServiceError(
        f"MLflow at {where} refuses our credentials.",
        "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


def failed(where: str, reason: str) -> ServiceError:
    """The error for whatever else goes wrong with the MLflow at an address."""
    return ServiceError(
        f"MLflow failed at {where}: {reason}", "Run `nightscore doctor` to see what is wrong."
    )


def _address() -> str:
    """Where MLflow is, without the login that the address may hold."""
    parts = urlsplit(settings().mlflow_uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def prints_logged() -> Iterator[None]:
    """Logs what MLflow prints on standard error, as it does for a few of its messages."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            logging.getLogger("mlflow").info("%s", line)


def get_run(run_id: str) -> Any:
    client = mlflow_client()
    from mlflow.exceptions import MlflowException

    with mlflow_errors():
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise DataError(
                    f"There is no run {run_id!r} in MLflow.",
                    "A version's page in MLflow names the run it came from.",
                ) from None
            raise
