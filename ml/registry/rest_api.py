"""Requests to MLflow through its REST API, without its library.

Importing MLflow's library takes seconds and about 200 MB, more than everything else that a night
without new images needs. A night therefore asks the server directly which version an alias names
and where the files of a version are, and downloads those files
(https://mlflow.org/docs/latest/api_reference/rest-api.html). Training uses the library
(`ml.registry.tracking`).
"""

# ruff: noqa: E402  # a module has to be kept out before httpx is imported

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

# httpx has a command line, whose imports take as long as all the rest of it.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

import httpx

from ml.errors import ServiceError
from ml.registry.api import VersionInfo
from ml.registry.client import login_error, mlflow_error
from ml.registry.library_api import LibraryApi
from ml.settings import mlflow_verification
from ml.storage.object_store import object_store
from ml.timeouts import client_limits, retrying

Answer = TypeVar("Answer")

# A retry may succeed after these statuses: the list of MLflow's own client.
_TRANSIENT = {408, 429, 500, 502, 503, 504}
_UNAUTHORIZED = {401, 403}
_NOT_FOUND = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
_API = "api/2.0/mlflow"
_PROXY = "api/2.0/mlflow-artifacts/artifacts"
_PROXY_SCHEME = "mlflow-artifacts"
_MAX_REASON_LENGTH = 300
_VERSIONS_PER_PAGE = 1000
_BLOCK_BYTES = 2**20


class _StatusError(Exception):
    """An answer whose status says that the request failed.

    Attributes:
        status: the HTTP status.
        code: MLflow's own error code, such as RESOURCE_DOES_NOT_EXIST; empty when it gave none.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        body = _json(response)
        self.code = str(body.get("error_code", ""))
        reason = str(body.get("message") or response.text)
        request = response.request
        super().__init__(
            f"{request.method} {request.url.path} was answered with {self.status}: {reason}"
        )


class RestApi:
    """The requests of `ml.registry.api.MlflowApi` to an MLflow server; threads may share it.

    Args:
        address: the server's URL. A login in it is used when no other is given.
        username: the user to log in as; empty for no login.
        password: the user's password.
        bearer_token: takes the place of user and password.
    """

    def __init__(self, address: str, username: str, password: str, bearer_token: str = "") -> None:
        parts = urlsplit(address)
        if not username and parts.username:
            username, password = unquote(parts.username), unquote(parts.password or "")
        self._netloc = parts.netloc.rpartition("@")[2]
        self.address = parts._replace(netloc=self._netloc).geturl().rstrip("/")
        self._model_uris: dict[str, str] = {}
        self._client = httpx.Client(
            auth=(username, password) if username and not bearer_token else None,
            headers={"Authorization": f"Bearer {bearer_token}"} if bearer_token else None,
            verify=mlflow_verification(address),
            follow_redirects=True,
        )

    def version_of_alias(self, model: str, alias: str) -> int | None:
        """See `MlflowApi`."""
        with self._errors():
            try:
                answer = self._get("registered-models/alias", name=model, alias=alias)
            except _StatusError as error:
                if error.code in _NOT_FOUND:
                    return None
                raise
            return int(answer["model_version"]["version"])

    def get_version(self, model: str, version: int) -> VersionInfo:
        """See `MlflowApi`."""
        with self._errors():
            answer = self._get("model-versions/get", name=model, version=str(version))
            model_version = answer["model_version"]
            tags = {tag["key"]: tag["value"] for tag in model_version.get("tags", ())}
            return VersionInfo(model_version["run_id"], tags)

    def search_versions(self, filter_string: str) -> list[int]:
        """See `MlflowApi`."""
        versions: list[int] = []
        query = {"filter": filter_string, "max_results": str(_VERSIONS_PER_PAGE)}
        with self._errors():
            while True:
                page = self._get("model-versions/search", **query)
                versions += (int(entry["version"]) for entry in page.get("model_versions", ()))
                if not page.get("next_page_token"):
                    return sorted(versions)
                query["page_token"] = page["next_page_token"]

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """See `MlflowApi`."""
        body = {"name": model, "alias": alias, "version": str(version)}
        with self._errors():
            self._request("POST", f"{_API}/registered-models/alias", json=body)

    def run_artifact_uri(self, run_id: str) -> str:
        """See `MlflowApi`."""
        with self._errors():
            return str(self._get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"])

    def model_artifact_uri(self, model_id: str) -> str:
        """See `MlflowApi`."""
        # Kept, since it never changes and several files of a model are asked for.
        if model_id not in self._model_uris:
            with self._errors():
                answer = self._get(f"logged-models/{quote(model_id, safe='')}")
                self._model_uris[model_id] = str(answer["model"]["info"]["artifact_uri"])
        return self._model_uris[model_id]

    def download(self, uri: str, path: Path) -> None:
        """See `MlflowApi`."""
        if (proxy_path := self._proxy_path(uri)) is not None:
            with self._errors():
                self._retry(lambda: self._stream(proxy_path, path))
        elif uri.startswith("s3://"):
            try:
                path.write_bytes(object_store().get(uri)[0])
            except FileNotFoundError as error:
                raise ServiceError(f"MLflow's artifact {uri} is not there.") from error
        else:
            LibraryApi().download(uri, path)

    def upload(self, uri: str, content: bytes) -> None:
        """See `MlflowApi`."""
        if (proxy_path := self._proxy_path(uri)) is not None:
            with self._errors():
                self._request("PUT", proxy_path, content=content)
        elif uri.startswith("s3://"):
            object_store().put(uri, content)
        else:
            LibraryApi().upload(uri, content)

    def _proxy_path(self, uri: str) -> str | None:
        """The path under which this server gives out an artifact; None when it does not."""
        parts = urlsplit(uri)
        if parts.scheme != _PROXY_SCHEME or parts.netloc not in ("", self._netloc):
            return None
        return f"{_PROXY}/{quote(unquote(parts.path).lstrip('/'))}"

    def _get(self, endpoint: str, **params: str) -> Mapping[str, Any]:
        return _json(self._request("GET", f"{_API}/{endpoint}", params=params))

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, again while it fails in a way that may pass."""

        def send() -> httpx.Response:
            url = f"{self.address}/{path}"
            response = self._client.request(method, url, timeout=_timeout(), **options)
            if response.is_error:
                raise _StatusError(response)
            return response

        return self._retry(send)

    def _stream(self, path: str, target: Path) -> None:
        url = f"{self.address}/{path}"
        with self._client.stream("GET", url, timeout=_timeout()) as response:
            if response.is_error:
                response.read()
                raise _StatusError(response)
            with target.open("wb") as file:
                for block in response.iter_bytes(_BLOCK_BYTES):
                    file.write(block)

    def _retry(self, send: Callable[[], Answer]) -> Answer:
        return retrying(_is_transient, timeout_s=client_limits().retry_for_s)(send)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the server's and the network's errors into one line that names the address."""
        try:
            yield
        except (_StatusError, httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, _StatusError) and error.status in _UNAUTHORIZED:
                raise login_error(self.address) from error
            reason = " ".join(str(error).split()) or type(error).__name__
            raise mlflow_error(self.address, reason[:_MAX_REASON_LENGTH]) from error
        except (KeyError, TypeError) as error:
            raise mlflow_error(self.address, f"unexpected answer ({error!r})") from error


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, _StatusError):
        return error.status in _TRANSIENT
    return isinstance(error, httpx.TransportError)


def _timeout() -> httpx.Timeout:
    limits = client_limits()
    return httpx.Timeout(limits.read_timeout_s, connect=limits.connect_timeout_s)


def _json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty when it is something else."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
