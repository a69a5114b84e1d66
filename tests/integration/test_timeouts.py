"""Every client has a limit of time, asks again a limited number of times, and is configured in one
place. What listens here accepts connections and never answers."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from ml.database import connection as database
from ml.errors import ConfigurationError, NightscoreError
from ml.registry import client, versions
from ml.settings import Settings, settings
from ml.stack.airflow_client import AirflowApi
from ml.storage.download import DownloadRequest, download
from ml.storage.object_store import ObjectStore
from ml.timeouts import ClientLimits, client_limits, retrying


class _Silent:
    """A server that accepts every connection and says nothing."""

    def __enter__(self) -> "_Silent":
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._socket.accept()[0])
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def impatient(monkeypatch) -> Iterator[None]:
    """One second for an answer, two seconds of retries."""
    for name, value in {
        "NIGHTSCORE_CONNECT_TIMEOUT_S": "1",
        "NIGHTSCORE_READ_TIMEOUT_S": "1",
        "NIGHTSCORE_RETRY_FOR_S": "2",
        "NIGHTSCORE_CONNECT_FOR_S": "2",
    }.items():
        monkeypatch.setenv(name, value)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    client_limits.cache_clear()
    settings.cache_clear()
    client.mlflow_client.cache_clear()


def _store(port: int) -> ObjectStore:
    keys = {"AWS_ACCESS_KEY_ID": "K" * 20, "AWS_SECRET_ACCESS_KEY": "S" * 40}
    return ObjectStore(Settings(AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}", **keys))


def _reads(port: int) -> object:
    return _store(port).get("s3://nightscore/a.png")


def _reads_by_boto(port: int) -> object:
    return _store(port).get("s3://nightscore/odd\x01name.png")


def _lists(port: int) -> object:
    return list(_store(port).list_pages("s3://nightscore/a"))


def _writes(port: int) -> object:
    return _store(port).put("s3://nightscore/a.png", b"a")


def _downloads(port: int) -> object:
    return list(download(_store(port), [DownloadRequest(0, "s3://nightscore/a.png", 1, "e")]))


def _connects(port: int) -> object:
    return database.engine_for(f"postgresql+psycopg2://someone@127.0.0.1:{port}/none").connect()


def _asks_airflow(port: int) -> object:
    address = Settings(NIGHTSCORE_AIRFLOW_URL=f"http://127.0.0.1:{port}")
    return AirflowApi(address).__enter__()


@pytest.mark.parametrize(
    "use", [_reads, _reads_by_boto, _lists, _writes, _downloads, _connects, _asks_airflow]
)
def test_a_server_that_never_answers_is_given_up(impatient, use: Callable[[int], object]):
    with _Silent() as server, pytest.raises(NightscoreError):
        use(server.port)


def test_an_mlflow_that_never_answers_is_given_up(impatient, monkeypatch):
    for name, value in client_limits().mlflow_environment().items():
        monkeypatch.setenv(name, value)
    with _Silent() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.port}")
        with pytest.raises(NightscoreError, match="MLflow failed at"):
            versions.list_versions("any")


def test_a_statement_that_never_ends_is_ended(store_and_database, monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_STATEMENT_TIMEOUT_S", "0.5")
    _forget()
    database.engine_for.cache_clear()
    try:
        with (
            database.transaction() as session,
            pytest.raises((NightscoreError, sa.exc.DBAPIError), match="statement timeout"),
        ):
            session.execute(sa.text("SELECT pg_sleep(60)"))
    finally:
        monkeypatch.undo()
        _forget()
        database.engine_for.cache_clear()


def test_a_limit_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_RETRY_FOR_S", "soon")
    client_limits.cache_clear()
    with pytest.raises(ConfigurationError, match="NIGHTSCORE_RETRY_FOR_S"):
        client_limits()
    client_limits.cache_clear()


def test_the_variables_reach_every_client(monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_READ_TIMEOUT_S", "7")
    monkeypatch.setenv("NIGHTSCORE_RETRY_FOR_S", "15")
    limits = ClientLimits()
    assert limits.obstore_options()["client_options"]["timeout"].total_seconds() == 7
    assert limits.boto_config()["read_timeout"] == 7
    assert limits.mlflow_environment()["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert limits.postgres_arguments()["tcp_user_timeout"] == 7000
    # Waits of 1, 2, 4 and 8 seconds.
    assert limits.mlflow_environment()["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "4"
    assert limits.boto_config()["retries"]["total_max_attempts"] == 5


def test_retries_are_bounded_and_their_waits_are_drawn():
    tries: list[float] = []

    def fail() -> None:
        tries.append(time.monotonic())
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retrying(lambda error: isinstance(error, TimeoutError), max_attempts=4)(fail)
    assert len(tries) == 4
    with pytest.raises(TimeoutError):
        retrying(lambda error: isinstance(error, ValueError), max_attempts=4)(fail)
    assert len(tries) == 5
    waits = {retrying(lambda error: True).wait(_State(3)) for _ in range(20)}
    assert len(waits) > 1
    assert max(waits) <= 5


class _State:
    """What tenacity tells a strategy of waiting."""

    def __init__(self, attempt: int) -> None:
        self.attempt_number = attempt
