"""What an error says, its causes and its traceback with them, holds no secret."""

import logging
import re
import socket
import threading
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa

from ml.database import connection, migrate
from ml.errors import NightscoreError
from ml.registry import client, tracking, versions
from ml.settings import settings
from ml.stack.airflow_client import AirflowApi
from ml.storage import clients
from ml.storage.download import DownloadRequest, download
from ml.storage.object_store import object_store
from ml.timeouts import client_limits

WRONG = "wr0ng-s3cret-of-a-user"
LOGINS = {
    "NIGHTSCORE_DATABASE_URL": "postgresql+psycopg2://nightscore_writer:{}@127.0.0.1:{}/nightscore",
    "NIGHTSCORE_ANALYST_URL": "postgresql+psycopg2://nightscore_analyst:{}@127.0.0.1:{}/nightscore",
    "NIGHTSCORE_OWNER_URL": "postgresql+psycopg2://nightscore_owner:{}@127.0.0.1:{}/nightscore",
}
PASSES = r"X-Amz-Signature=|X-Amz-Credential|AWS4-HMAC|Authorization|Basic [A-Za-z0-9+/=]{8}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _postgres() -> None:
    with connection.transaction() as session:
        session.execute(sa.text("SELECT 1"))


def _analyst() -> None:
    with connection.analyst_engine().connect():
        pass


def _get() -> None:
    object_store().get("s3://nightscore/one.png")


def _odd_key() -> None:
    object_store().get("s3://nightscore/a//one.png")


def _list() -> None:
    list(object_store().list_pages("s3://nightscore/streams"))


def _put() -> None:
    object_store().put("s3://nightscore/one.png", b"one")


def _many() -> None:
    requests = [DownloadRequest(n, f"s3://nightscore/{n}.png", 10, "e") for n in range(3)]
    list(download(object_store(), requests))


def _mlflow() -> None:
    versions.list_versions("shades")


def _mlflow_by_its_library() -> None:
    tracking.run_tags("0" * 32)


def _airflow() -> None:
    with AirflowApi(settings()):
        pass


ACTIONS: list[Callable[[], None]] = [
    _postgres, _analyst, migrate.migrate, _get, _odd_key, _list, _put, _many, _mlflow,
    _mlflow_by_its_library, _airflow,
]  # fmt: skip


def _clear() -> None:
    settings.cache_clear()
    client_limits.cache_clear()
    object_store.cache_clear()
    client.mlflow_client.cache_clear()


@pytest.fixture
def pretend(monkeypatch, services):
    """Gives every service a wrong password, and with `unreachable` an address where none is."""

    def change(unreachable: bool) -> None:
        session = settings()
        port = sa.make_url(session.require_database_url()).port
        nowhere = _free_port()
        for name, form in LOGINS.items():
            monkeypatch.setenv(name, form.format(WRONG, nowhere if unreachable else port))
        for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, WRONG)
        monkeypatch.setenv("NIGHTSCORE_AIRFLOW_PASSWORD", WRONG)
        # Airflow does not run here; MLflow refuses its addresses as well.
        for name, address in {
            "AWS_ENDPOINT_URL": session.s3_endpoint,
            "MLFLOW_TRACKING_URI": session.mlflow_uri,
            "NIGHTSCORE_AIRFLOW_URL": session.mlflow_uri,
        }.items():
            monkeypatch.setenv(name, f"http://127.0.0.1:{nowhere}" if unreachable else address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        for name in ("NIGHTSCORE_RETRY_FOR_S", "NIGHTSCORE_CONNECT_FOR_S"):
            monkeypatch.setenv(name, "1")
        _clear()

    # The store as it is set up, without a minute of retries.
    options = clients.s3_options
    monkeypatch.setattr(
        clients,
        "s3_options",
        lambda settings: options(settings) | {"retry_config": {"max_retries": 0}},
    )
    yield change
    monkeypatch.undo()
    _clear()
    client.mlflow_client()  # puts the right login back into the environment


@pytest.mark.parametrize("unreachable", [False, True], ids=["refused", "unreachable"])
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_an_error_of_a_service_names_no_secret(pretend, action, unreachable, caplog, capfd):
    pretend(unreachable)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises((NightscoreError, sa.exc.DBAPIError)) as caught,
    ):
        action()
    text = (
        "".join(traceback.format_exception(caught.value))
        + caplog.text
        + "".join(capfd.readouterr())
    )
    assert len(text) > 200
    assert WRONG not in text
    assert not re.search(PASSES, text), re.search(PASSES, text)


def test_settings_do_not_show_what_they_hold(pretend):
    pretend(unreachable=True)
    text = f"{settings()!r} {settings()} {settings().model_dump()} {settings().model_dump_json()}"
    assert "127.0.0.1" in text
    assert WRONG not in text
    engine = connection.engine_for(settings().require_database_url())
    assert WRONG not in f"{engine!r} {engine.url}"


def test_a_url_that_cannot_be_read_is_refused_without_being_shown(pretend, monkeypatch):
    pretend(unreachable=True)
    monkeypatch.setenv("NIGHTSCORE_DATABASE_URL", f"postgresql//writer:{WRONG}@host/nightscore")
    _clear()
    with pytest.raises(Exception) as caught:  # whatever it is, it is looked at
        _postgres()
    assert WRONG not in "".join(traceback.format_exception(caught.value))


class _Echo(BaseHTTPRequestHandler):
    """Answers an error with the request that it was sent, as a validation of FastAPI does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(422)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_an_answer_of_airflow_that_repeats_the_login_is_not_repeated(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setenv("NIGHTSCORE_AIRFLOW_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NIGHTSCORE_AIRFLOW_PASSWORD", WRONG)
        settings.cache_clear()
        with pytest.raises(NightscoreError) as caught, AirflowApi(settings()):
            pass
    monkeypatch.undo()
    settings.cache_clear()
    assert "refused POST /auth/token: 422" in str(caught.value)
    assert WRONG not in "".join(traceback.format_exception(caught.value))
