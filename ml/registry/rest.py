"""MLflow's REST API, as far as scoring and promotion need it.

To import MLflow's own library takes seconds and some 200 MB, more than all else of a night without
new images. So a night asks the server itself which version an alias names, where the files of a
version are, and for those files (https://mlflow.org/docs/latest/api_reference/rest-api.html).
Training uses the library (`ml.registry.tracking`), and so does `server()` here where MLflow is no
HTTP server, or wants a login that only the library knows.
"""

# ruff: noqa: E402  # a module has to be kept out before httpx is imported

import logging
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

# httpx has a command line, whose imports take as long as all the rest of it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

import httpx

from ml.errors import ServiceError
from ml.registry.client import failed, refused
from ml.registry.library import Library, VersionInfo
from ml.settings import settings
from ml.storage.object_store import object_store
from ml.timeouts import client_limits, retrying

log = logging.getLogger(__name__)

# Answers that another try may change, as MLflow's own client has them.
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_REFUSED = {401, 403}
# What the library reads and this module does not.
_LIBRARY_ONLY = (
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_WORKSPACE",
)
_LOGINS = Path("~/.mlflow/credentials")
_API = "api/2.0/mlflow"
_PROXY = "api/2.0/mlflow-artifacts/artifacts"
_PROXIED = "mlflow-artifacts"
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
_LONGEST_REASON = 300
# Of versions, a page.
_PAGE = 1000
_BLOCK_BYTES = 2**20


class Mlflow(Protocol):
    """What scoring and promotion ask of MLflow. All raise ServiceError when it fails."""

    def version_of_alias(self, model: str, alias: str) -> int | None:
        """The version an alias names; None when the model or the alias is not there."""

    def version(self, model: str, version: int) -> VersionInfo:
        """Run and tags of a registered version."""

    def versions(self, named: str) -> list[int]:
        """The versions that MLflow's filter finds, in order."""

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Let an alias name a version."""

    def folder_of_run(self, run_id: str) -> str:
        """URI of the folder with a run's artifacts."""

    def folder_of_model(self, model_id: str) -> str:
        """URI of the folder with a logged model's artifacts."""

    def download(self, uri: str, path: Path) -> None:
        """Write an artifact to a file. What the file system raises passes through."""

    def upload(self, uri: str, content: bytes) -> None:
        """Store an artifact."""


def server() -> Mlflow:
    """The way to MLflow: its REST API, or its library where that is no way.

    Raises ConfigurationError when no address is set.
    """
    current = settings()
    address = current.require_mlflow_uri()
    by_library = urlsplit(address).scheme not in ("http", "https") or any(
        os.environ.get(name) for name in _LIBRARY_ONLY
    )
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    if not (current.mlflow_username or token or urlsplit(address).username):
        by_library |= _LOGINS.expanduser().exists()
    if by_library:
        return Library()
    password = current.mlflow_password.get_secret_value()
    return _rest(address, current.mlflow_username, password, token)


@lru_cache(maxsize=4)
def _rest(address: str, username: str, password: str, token: str) -> "Rest":
    return Rest(address, username, password, token)


class _Answer(Exception):
    """An answer of the server that is an error; `code` is MLflow's own word for it."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        said = _json(response)
        self.code = str(said.get("error_code", ""))
        reason = str(said.get("message") or response.text)
        request = response.request
        super().__init__(
            f"{request.method} {request.url.path} was answered with {self.status}: {reason}"
        )


class Rest:
    """An MLflow server; safe to share between threads.

    Args:
        address: its URL; a login in it is used when there is no other.
        username, password, token: how to log in: by the token if there is one.
    """

    def __init__(self, address: str, username: str, password: str, token: str = "") -> None:
        parts = urlsplit(address)
        if not username and parts.username:
            username, password = unquote(parts.username), unquote(parts.password or "")
        self._netloc = parts.netloc.rpartition("@")[2]
        self.address = parts._replace(netloc=self._netloc).geturl().rstrip("/")
        self._folders: dict[str, str] = {}
        self._client = httpx.Client(
            auth=(username, password) if username and not token else None,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            verify=_certificates(parts.scheme),
            follow_redirects=True,
        )

    def version_of_alias(self, model: str, alias: str) -> int | None:
        with self._explained():
            try:
                found = self._get("registered-models/alias", name=model, alias=alias)
            except _Answer as error:
                if error.code in _MISSING:
                    return None
                raise
            return int(found["model_version"]["version"])

    def version(self, model: str, version: int) -> VersionInfo:
        with self._explained():
            found = self._get("model-versions/get", name=model, version=str(version))
            described = found["model_version"]
            tags = {tag["key"]: tag["value"] for tag in described.get("tags", ())}
            return VersionInfo(described["run_id"], tags)

    def versions(self, named: str) -> list[int]:
        found: list[int] = []
        asked: dict[str, str] = {"filter": named, "max_results": str(_PAGE)}
        with self._explained():
            while True:
                page = self._get("model-versions/search", **asked)
                found += (int(one["version"]) for one in page.get("model_versions", ()))
                if not page.get("next_page_token"):
                    return sorted(found)
                asked["page_token"] = page["next_page_token"]

    def set_alias(self, model: str, alias: str, version: int) -> None:
        body = {"name": model, "alias": alias, "version": str(version)}
        with self._explained():
            self._ask("POST", f"{_API}/registered-models/alias", json=body)

    def folder_of_run(self, run_id: str) -> str:
        with self._explained():
            return str(self._get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"])

    def folder_of_model(self, model_id: str) -> str:
        if model_id not in self._folders:  # it never changes, and several files are asked for
            with self._explained():
                found = self._get(f"logged-models/{quote(model_id, safe='')}")
                self._folders[model_id] = str(found["model"]["info"]["artifact_uri"])
        return self._folders[model_id]

    def download(self, uri: str, path: Path) -> None:
        if (proxied := self._proxied(uri)) is not None:
            with self._explained():
                self._again(self._stream, proxied, path)
        elif uri.startswith("s3://"):
            try:
                path.write_bytes(object_store().get(uri)[0])
            except FileNotFoundError as error:
                raise ServiceError(f"MLflow's artifact {uri} is not there.") from error
        else:
            Library().download(uri, path)

    def upload(self, uri: str, content: bytes) -> None:
        if (proxied := self._proxied(uri)) is not None:
            with self._explained():
                self._ask("PUT", proxied, content=content)
        elif uri.startswith("s3://"):
            object_store().put(uri, content)
        else:
            Library().upload(uri, content)

    def _proxied(self, uri: str) -> str | None:
        """The path under which the server itself gives an artifact; None when it does not."""
        parts = urlsplit(uri)
        if parts.scheme != _PROXIED or parts.netloc not in ("", self._netloc):
            return None
        return f"{_PROXY}/{quote(unquote(parts.path).lstrip('/'))}"

    def _get(self, endpoint: str, **params: str) -> Mapping[str, Any]:
        response = self._ask("GET", f"{_API}/{endpoint}", params=params)
        return _json(response)

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        """The answer to a request, which is made again while it fails in a way that may pass."""

        def ask() -> httpx.Response:
            url = f"{self.address}/{path}"
            response = self._client.request(method, url, timeout=_timeout(), **content)
            if response.is_error:
                raise _Answer(response)
            return response

        return self._again(ask)

    def _stream(self, path: str, file: Path) -> None:
        url = f"{self.address}/{path}"
        with self._client.stream("GET", url, timeout=_timeout()) as response:
            if response.is_error:
                response.read()
                raise _Answer(response)
            with file.open("wb") as written:
                for block in response.iter_bytes(_BLOCK_BYTES):
                    written.write(block)

    def _again(self, ask: Any, *arguments: Any) -> Any:
        return retrying(_may_pass, timeout_s=client_limits().retry_for_s)(ask, *arguments)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the server's and the network's errors into a line that names the address."""
        try:
            yield
        except (_Answer, httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, _Answer) and error.status in _REFUSED:
                raise refused(self.address) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise failed(self.address, reason[:_LONGEST_REASON]) from error
        except (KeyError, TypeError) as error:
            raise failed(self.address, f"unexpected answer ({error!r})") from error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _Answer):
        return error.status in _TRANSIENT
    return isinstance(error, httpx.TransportError)


def _timeout() -> httpx.Timeout:
    limits = client_limits()
    return httpx.Timeout(limits.read_timeout_s, connect=limits.connect_timeout_s)


def _certificates(scheme: str) -> ssl.SSLContext | bool:
    """What a server's certificate is checked with, as for MLflow's library and for requests."""
    if scheme == "http":
        # None is expected. To read those of all authorities takes a while, so none is trusted.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return False
    for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            if Path(path).is_dir():
                return ssl.create_default_context(capath=path)
            return ssl.create_default_context(cafile=path)
    return True


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
