"""MLflow's REST API without its library: the same answers, and errors that say what to do."""

import base64
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count

import pytest

from ml.errors import ServiceError
from ml.registry import artifacts, server
from ml.registry.api import MlflowApi
from ml.registry.client import mlflow_client
from ml.registry.library_api import LibraryApi
from ml.registry.rest_api import RestApi
from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support.proxy import Fault, HttpRequest, Proxy
from tests.support.retries import no_retries

WRONG = "wr0ng-s3cret-of-a-user"


def _rest(address: str = "", username: str = "", password: str = "", token: str = "") -> RestApi:
    login = settings()
    if not (username or token):
        username, password = login.mlflow_username, login.mlflow_password.get_secret_value()
    return RestApi(address or login.mlflow_uri, username, password, token)


@pytest.fixture
def impatient() -> Iterator[None]:
    with no_retries():
        yield


@pytest.mark.parametrize("ask", [_rest, LibraryApi], ids=["REST", "library"])
def test_both_ways_to_mlflow_give_the_same(trained, ask: Callable[[], MlflowApi], tmp_path):
    mlflow, client = ask(), mlflow_client()
    version = mlflow.version_of_alias("moulds", "champion")
    expected = client.get_model_version_by_alias("moulds", "champion")
    assert version == int(expected.version)
    assert mlflow.version_of_alias("moulds", "nobody") is None
    assert mlflow.version_of_alias("nothing", "champion") is None
    assert mlflow.get_version("moulds", version) == (expected.run_id, expected.tags)
    assert version in mlflow.search_versions("name = 'moulds'")
    assert mlflow.search_versions("name = 'nothing'") == []
    folder = mlflow.run_artifact_uri(expected.run_id)
    assert folder == client.get_run(expected.run_id).info.artifact_uri
    model_id = artifacts.logged_model_id_of_run(expected.run_id)
    assert (
        mlflow.model_artifact_uri(model_id) == client.get_logged_model(model_id).artifact_location
    )

    mlflow.set_alias("moulds", "tried", version)
    assert client.get_model_version_by_alias("moulds", "tried").version == str(version)
    client.delete_registered_model_alias("moulds", "tried")

    content = b"of a form" * 1000
    mlflow.upload(f"{folder}/odd names/50% é.bin", content)
    mlflow.download(f"{folder}/odd names/50% é.bin", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "fetched"]
    with no_retries(), pytest.raises(ServiceError, match="MLflow failed at"):
        mlflow.download(f"{folder}/nowhere.bin", tmp_path / "nowhere")
    with pytest.raises(ServiceError, match="MLflow failed at"):
        mlflow.get_version("moulds", 999)


@pytest.mark.parametrize("ask", [_rest, LibraryApi], ids=["REST", "library"])
def test_both_ways_read_files_from_mlflow_s_server_and_not_from_s3(
    trained, services, ask: Callable[[], MlflowApi], tmp_path
):
    version = mlflow_client().get_model_version_by_alias("moulds", "champion")
    log, mlflow = services.layout.log("mlflow"), ask()
    uri = f"{mlflow.run_artifact_uri(version.run_id)}/{artifacts.PROGRAM_INFO}"
    before = log.stat().st_size
    mlflow.download(uri, tmp_path / "program.json")
    # Requests are in the log in their order.
    assert mlflow.search_versions("name = 'the end of the download'") == []
    while b"the+end" not in (requests := log.read_bytes()[before:].replace(b"%20", b"+")):
        time.sleep(0.05)
    assert b"/mlflow-artifacts/artifacts/" in requests
    assert b"/mlflow-artifacts/presigned/" not in requests


def test_artifacts_that_lie_in_the_object_store_come_from_there(bucket, services, tmp_path):
    mlflow = _rest()
    mlflow.upload(f"{bucket}/1/model.pt2", b"a program")
    assert object_store().get(f"{bucket}/1/model.pt2")[0] == b"a program"
    mlflow.download(f"{bucket}/1/model.pt2", tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_bytes() == b"a program"
    with pytest.raises(ServiceError, match=r"nowhere\.pt2 is not there"):
        mlflow.download(f"{bucket}/1/nowhere.pt2", tmp_path / "nowhere")


def test_artifacts_in_another_place_come_by_the_library(services, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.bin").write_bytes(b"content")
    _rest().download((tmp_path / "there").as_uri() + "/a.bin", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"content"
    _rest().upload((tmp_path / "there").as_uri() + "/b.bin", b"other")
    assert (tmp_path / "there" / "b.bin").read_bytes() == b"other"


def test_a_request_that_fails_for_a_while_is_made_again(trained):
    requests = count()

    def decide(request: HttpRequest) -> Fault | None:
        return Fault(status=503) if next(requests) < 2 else None

    with Proxy(settings().mlflow_uri, decide) as proxy:
        assert _rest(proxy.url).version_of_alias("moulds", "champion")
        assert proxy.faults == 2


def test_a_download_that_breaks_off_is_made_again(trained, tmp_path):
    run_id = mlflow_client().get_model_version("moulds", "1").run_id
    uri = f"{_rest().run_artifact_uri(run_id)}/program.json"
    requests = count()

    def decide(request: HttpRequest) -> Fault | None:
        return Fault(cut=True) if next(requests) < 2 else None

    with Proxy(settings().mlflow_uri, decide) as proxy:
        _rest(proxy.url).download(uri, tmp_path / "program.json")
        assert proxy.faults == 2
    assert '"task"' in (tmp_path / "program.json").read_text()


def test_a_wrong_login_is_said_and_not_asked_again(services):
    with (
        Proxy(settings().mlflow_uri) as proxy,
        pytest.raises(ServiceError, match="refuses our credentials") as caught,
    ):
        _rest(proxy.url, "admin", WRONG).version_of_alias("moulds", "champion")
    assert "MLFLOW_TRACKING_PASSWORD" in caught.value.hint
    assert proxy.seen.total() == 1


def test_a_login_in_the_address_is_used_and_not_shown(services, impatient):
    login = settings()
    password = login.mlflow_password.get_secret_value()
    scheme, _, host = login.mlflow_uri.partition("://")
    inside = RestApi(f"{scheme}://{login.mlflow_username}:{password}@{host}", "", "")
    assert inside.search_versions("name = 'nothing'") == []
    assert password not in inside.address
    with pytest.raises(ServiceError, match=r"MLflow failed at http://127\.0\.0\.1:9:") as caught:
        RestApi(f"http://admin:{WRONG}@127.0.0.1:9/", "", "").search_versions("name = 'nothing'")
    assert WRONG not in "".join(traceback.format_exception(caught.value))


class _Saying(BaseHTTPRequestHandler):
    """Answers every request with an HTML page, and records its login."""

    page = b"<html>Log in</html>"
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def _page() -> Iterator[tuple[str, list[str]]]:
    seen: list[str] = []
    handler = type("_Handler", (_Saying,), {"seen": seen})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()


def test_what_is_no_answer_of_mlflow_s_is_an_error(services, impatient):
    with _page() as (address, _), pytest.raises(ServiceError, match="unexpected answer"):
        _rest(address).version_of_alias("moulds", "champion")


def test_a_token_goes_before_a_password(services, impatient):
    with _page() as (address, seen):
        for mlflow in (RestApi(address, "a", "b", "t0ken"), RestApi(address, "a", "b")):
            with pytest.raises(ServiceError):
                mlflow.run_artifact_uri("0")
    assert seen == ["Bearer t0ken", "Basic " + base64.b64encode(b"a:b").decode()]


@pytest.mark.parametrize(
    ("name", "value", "needs_library"),
    [
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", False),
        ("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db", True),
        ("MLFLOW_TRACKING_URI", "databricks", True),
        ("MLFLOW_TRACKING_AWS_SIGV4", "true", True),
        ("MLFLOW_TRACKING_TOKEN", "t0ken", False),
    ],
)
def test_where_only_the_library_knows_the_way_it_is_used(
    services, monkeypatch, name, value, needs_library
):
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    try:
        assert isinstance(server.mlflow_api(), LibraryApi if needs_library else RestApi)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_logins_that_lie_in_the_library_s_own_file_are_left_to_it(services, monkeypatch, tmp_path):
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text("[mlflow]\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(server.mlflow_api(), RestApi)
    without = settings().model_copy(update={"mlflow_username": ""})
    monkeypatch.setattr(server, "settings", lambda: without)
    assert isinstance(server.mlflow_api(), LibraryApi)
