"""Services behind TLS, with an authority of their own that an Airflow connection names."""

import json
import os
import uuid
from urllib.parse import quote, urlsplit

import pytest
import sqlalchemy as sa
from nightscore_connections import MLFLOW, POSTGRES, S3, export_connections

from ml.database.connection import engine_for
from ml.errors import ServiceError
from ml.registry.rest_api import RestApi
from ml.settings import Settings, settings
from ml.stack.doctor import _check_mlflow, _connect
from ml.stack.layout import known_ports
from ml.storage.download import DownloadRequest, download
from ml.storage.object_store import ObjectStore
from tests.support.retries import no_retries
from tests.support.tls import Authority, TlsServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def through_connection(tmp_path):
    """Exports an Airflow connection, in an environment that says nothing else of the services."""

    def export(connection_id: str, text: str) -> Settings:
        os.environ.clear()
        os.environ.update(
            {
                "PATH": before["PATH"], "HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path),
                "NIGHTSCORE_HOME": str(tmp_path), "NIGHTSCORE_CONNECT_FOR_S": "0",
                "NIGHTSCORE_RETRY_FOR_S": "0",
                f"AIRFLOW_CONN_{connection_id.upper()}": text,
            }
        )  # fmt: skip
        assert export_connections((connection_id,))
        return Settings(_env_file=None)

    with no_retries():
        before = dict(os.environ)
        yield export
        os.environ.clear()
        os.environ.update(before)


def _postgres(port: int, **options: object) -> str:
    login = sa.make_url(settings().require_database_url())
    query = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
    return f"postgres://{login.username}:{login.password}@127.0.0.1:{port}/nightscore?{query}"


def test_postgres_is_verified_with_the_connection_s_authority(
    store_and_database, authority, through_connection
):
    port = known_ports(store_and_database.layout)["postgres"]
    with TlsServer(port, authority, postgres=True) as server:
        uri = _postgres(
            server.port, sslmode="verify-full", sslrootcert=authority.path,
            application_name="of the connection", options="-c work_mem=7MB",
        )  # fmt: skip
        url = through_connection(POSTGRES, uri).require_database_url()
        with engine_for(url).connect() as connection:
            assert connection.connection.dbapi_connection.info.ssl_in_use
            names = ("application_name", "work_mem", "statement_timeout")
            shown = {name: connection.scalar(sa.text(f"SHOW {name}")) for name in names}
        assert shown == {
            "application_name": "of the connection", "work_mem": "7MB", "statement_timeout": "1h"
        }  # fmt: skip
        assert _connect(url).endswith(f"127.0.0.1:{server.port}/nightscore")


def test_postgres_with_another_authority_is_refused(
    store_and_database, authority, through_connection, tmp_path
):
    port = known_ports(store_and_database.layout)["postgres"]
    with TlsServer(port, authority, postgres=True) as server:
        stranger = Authority(tmp_path)
        uri = _postgres(server.port, sslmode="verify-full", sslrootcert=stranger.path)
        url = through_connection(POSTGRES, uri).require_database_url()
        with pytest.raises(ServiceError, match="certificate verify failed"):
            engine_for(url).connect()


def test_postgres_tries_the_hosts_of_a_connection(
    store_and_database, through_connection, unused_port
):
    port = known_ports(store_and_database.layout)["postgres"]
    login = sa.make_url(settings().require_database_url())
    fields = {
        "conn_type": "postgres", "host": "127.0.0.1,127.0.0.1", "login": login.username,
        "password": login.password, "schema": "nightscore",
        "extra": {"port": f"{unused_port},{port}", "target_session_attrs": "read-write"},
    }  # fmt: skip
    url = through_connection(POSTGRES, json.dumps(fields)).require_database_url()
    with engine_for(url).connect() as connection:
        assert connection.connection.dbapi_connection.info.port == port


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _s3(endpoint: str, **extra: object) -> str:
    login = settings()
    return json.dumps(
        {
            "conn_type": "aws", "login": login.s3_access_key,
            "password": login.s3_secret_key.get_secret_value(),
            "extra": {"endpoint_url": endpoint, "region_name": "us-east-1", **extra},
        }
    )  # fmt: skip


def _with_each_client(store: ObjectStore, uri: str) -> dict[str, object]:
    """What obstore, boto3 and libcurl read of an object, or the error."""

    def with_curl() -> bytes | None:
        # Without the second try, which is obstore's.
        store.get = lambda uri: pytest.fail("libcurl has failed")  # type: ignore[method-assign]
        [result] = download(store, [DownloadRequest(0, uri, 7, "")])
        return result.content

    bucket, key = uri.removeprefix("s3://").split("/", 1)
    readers = {
        "obstore": lambda: store.get(uri)[0],
        "boto3": lambda: store.boto.get_object(Bucket=bucket, Key=key)["Body"].read(),
        "libcurl": with_curl,
    }
    outcomes: dict[str, object] = {}
    for name, read in readers.items():
        try:
            outcomes[name] = read()
        except BaseException as error:
            outcomes[name] = type(error).__name__
    return outcomes


@pytest.mark.parametrize("verify", ["the authority", "no check"])
def test_all_clients_of_s3_follow_the_connection_s_tls(
    store_and_database, authority, through_connection, verify
):
    uri = f"s3://nightscore/tls-{uuid.uuid4().hex}/object"
    ObjectStore(settings()).put(uri, b"content")
    port = urlsplit(settings().s3_endpoint).port
    with TlsServer(port, authority) as server:
        value = False if verify == "no check" else str(authority.path)
        text = _s3(f"https://127.0.0.1:{server.port}", verify=value)
        store = ObjectStore(through_connection(S3, text))
        assert _with_each_client(store, uri) == dict.fromkeys(
            ("obstore", "boto3", "libcurl"), b"content"
        )
    assert "SSL_CERT_FILE" not in os.environ


def test_no_client_of_s3_trusts_another_authority(
    store_and_database, authority, through_connection, tmp_path
):
    uri = f"s3://nightscore/tls-{uuid.uuid4().hex}/object"
    ObjectStore(settings()).put(uri, b"content")
    port = urlsplit(settings().s3_endpoint).port
    with TlsServer(port, authority) as server:
        text = _s3(f"https://127.0.0.1:{server.port}", verify=str(Authority(tmp_path).path))
        store = ObjectStore(through_connection(S3, text))
        assert _with_each_client(store, uri) == {
            "obstore": "ServiceError", "boto3": "SSLError", "libcurl": "Failed"
        }  # fmt: skip


def test_mlflow_is_verified_with_the_connection_s_authority(
    services, authority, through_connection, tmp_path
):
    login = settings()
    port = urlsplit(login.mlflow_uri).port
    with TlsServer(port, authority) as server:
        fields = {
            "conn_type": "https", "host": "127.0.0.1", "port": server.port,
            "login": login.mlflow_username, "password": login.mlflow_password.get_secret_value(),
            "extra": {"verify": str(authority.path)},
        }  # fmt: skip
        given = through_connection(MLFLOW, json.dumps(fields))
        password = given.mlflow_password.get_secret_value()

        def search() -> list[int]:
            return RestApi(given.mlflow_uri, given.mlflow_username, password).search_versions(
                "name = 'none'"
            )

        assert search() == []
        assert _check_mlflow(given) == given.mlflow_uri
        os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] = str(Authority(tmp_path).path)
        with pytest.raises(ServiceError, match=r"(?i)certificate"):
            search()
