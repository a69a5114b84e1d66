"""MLflow's library with our credentials, and its errors in our words."""

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

# MLflow reads it when it is imported, whoever imports it first. With it, MLflow's messages go to
# this process's log instead of standard error.
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")

# How MLflow and requests word a status. An id in the message may contain the same digits.
_UNAUTHORIZED = re.compile(r"error code 40[13]\b|\b40[13] (Client )?Error")


@lru_cache(maxsize=1)
def mlflow_client() -> Any:
    """Return an MLflow client with our credentials, which MLflow reads from the environment."""
    login = settings()
    os.environ["MLFLOW_TRACKING_URI"] = login.require_mlflow_uri()
    if login.mlflow_username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = login.mlflow_username
        os.environ["MLFLOW_TRACKING_PASSWORD"] = login.mlflow_password.get_secret_value()
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **client_limits().mlflow_environment(),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Artifacts go through MLflow's server. Otherwise the library asks it for signed URLs, and
        # reads S3 itself: from another address, which it trusts by other authorities.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return mlflow.MlflowClient()


@contextmanager
def mlflow_errors() -> Iterator[None]:
    """Turn MLflow's and the network's errors into one line that names the address.

    Raises:
        ServiceError: MLflow cannot be reached, refuses the login or failed.
    """
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except NightscoreError:
        raise
    except (MlflowException, RequestException) as error:
        reason = " ".join(str(error).split())[:300]
        if _UNAUTHORIZED.search(reason):
            raise login_error(_address()) from error
        raise mlflow_error(_address(), reason) from error


def login_error(address: str) -> ServiceError:
    """Return the error for a login that the MLflow at an address refuses."""
    return ServiceError(
        f"MLflow at {address} refuses our credentials.",
        "Correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.",
    )


def mlflow_error(address: str, reason: str) -> ServiceError:
    """Return the error for every other failure of the MLflow at an address."""
    return ServiceError(
        f"MLflow failed at {address}: {reason}", "Run `nightscore doctor` to see what is wrong."
    )


def _address() -> str:
    """MLflow's address without the login that it may contain."""
    parts = urlsplit(settings().mlflow_uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def stderr_logged() -> Iterator[None]:
    """Send what MLflow prints on standard error, as it does for a few messages, to the log."""
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            yield
    finally:
        for line in stderr.getvalue().splitlines():
            logging.getLogger("mlflow").info("%s", line)


def get_run(run_id: str) -> Any:
    """Return MLflow's record of a run (`mlflow.entities.Run`).

    Raises:
        DataError: there is no such run.
        ServiceError: MLflow failed.
    """
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
