"""The choice of a client for MLflow: its REST API, or its library where REST does not do."""

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from ml.registry.api import MlflowApi
from ml.registry.library_api import LibraryApi
from ml.registry.rest_api import RestApi
from ml.settings import settings

# The library reads these variables; `RestApi` does not.
_LIBRARY_ONLY = (
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_WORKSPACE",
)
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")


def mlflow_api() -> MlflowApi:
    """Return a client for the MLflow of the settings.

    Raises:
        ConfigurationError: no address is set.
    """
    login = settings()
    address = login.require_mlflow_uri()
    needs_library = urlsplit(address).scheme not in ("http", "https") or any(
        os.environ.get(name) for name in _LIBRARY_ONLY
    )
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    if not (login.mlflow_username or token or urlsplit(address).username):
        # Only the library reads the login from this file.
        needs_library |= _CREDENTIALS_FILE.expanduser().exists()
    if needs_library:
        return LibraryApi()
    password = login.mlflow_password.get_secret_value()
    return _rest_api(address, login.mlflow_username, password, token)


@lru_cache(maxsize=4)
def _rest_api(address: str, username: str, password: str, token: str) -> RestApi:
    return RestApi(address, username, password, token)
