"""Airflow's connections: each option reaches a client, or is refused by name."""

import json
import os

import pytest
import sqlalchemy as sa
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from nightscore_connections import (
    ANALYST,
    MLFLOW,
    POSTGRES,
    S3,
    export_connections,
)

from ml.database.connection import connect_arguments, describe_address
from ml.errors import ConfigurationError, ServiceError
from ml.settings import Settings
from ml.storage.clients import boto_addressing, boto_options, s3_options

KEY = {"login": "key", "password": "secret"}


@pytest.fixture(autouse=True)
def _restored_environment(monkeypatch, tmp_path):
    before = dict(os.environ)
    os.environ |= {"NIGHTSCORE_HOME": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)}
    yield
    os.environ.clear()
    os.environ.update(before)


def exported(connection_id: str, connection: str | dict) -> dict[str, str]:
    """The variables that change when a connection, a URI or JSON, is exported."""
    text = connection if isinstance(connection, str) else json.dumps(connection)
    before = {**os.environ, f"AIRFLOW_CONN_{connection_id.upper()}": text}
    os.environ.clear()
    os.environ.update(before)
    export_connections((connection_id,))
    after = dict(os.environ)
    os.environ.clear()
    os.environ.update(before)
    return {name: value for name, value in after.items() if before.get(name) != value}


def both_forms(uri: str, fields: dict) -> list:
    return [pytest.param(uri, id="uri"), pytest.param(fields, id="json")]


@pytest.mark.parametrize("connection_id", [POSTGRES, ANALYST])
@pytest.mark.parametrize(
    "connection",
    both_forms(
        "postgres://me:p%40ss@db:5433/scores?sslmode=verify-full&sslrootcert=%2Fca.pem"
        "&application_name=night&options=-c%20work_mem%3D64MB&connect_timeout=3",
        {
            "conn_type": "postgres", "host": "db", "port": 5433, "login": "me",
            "password": "p@ss", "schema": "scores",
            "extra": {
                "sslmode": "verify-full", "sslrootcert": "/ca.pem", "application_name": "night",
                "options": "-c work_mem=64MB", "connect_timeout": 3,
            },
        },
    ),
)  # fmt: skip
def test_options_of_postgres_reach_its_client(connection_id, connection):
    [url] = exported(connection_id, connection).values()
    parsed = sa.make_url(url)
    _, of_url = parsed.get_dialect()().create_connect_args(parsed)
    arguments = {**of_url, **connect_arguments(parsed)}  # as SQLAlchemy merges them
    expected = {
        "host": "db", "port": 5433, "user": "me", "password": "p@ss", "dbname": "scores",
        "sslmode": "verify-full", "sslrootcert": "/ca.pem", "application_name": "night",
        "connect_timeout": "3",
    }  # fmt: skip
    assert expected.items() <= arguments.items()
    # Ours stay, and the connection's come after them.
    assert "statement_timeout" in arguments["options"]
    assert arguments["options"].endswith(" -c work_mem=64MB")


@pytest.mark.parametrize(
    ("host", "port", "extra", "address"),
    [
        ("a,b", 5433, {"target_session_attrs": "read-write"}, "a,b:5433,5433/scores"),
        ("a,b", None, {"port": "5433,5434"}, "a,b:5433,5434/scores"),
        ("/run/postgres", None, {}, "/run/postgres:5432/scores"),
    ],
)
def test_a_connection_may_name_several_hosts_or_a_socket(host, port, extra, address):
    fields = {"conn_type": "postgres", "host": host, "port": port, "schema": "scores", **KEY}
    [url] = exported(POSTGRES, {**fields, "extra": extra}).values()
    parsed = sa.make_url(url)
    assert describe_address(parsed) == address
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    hosts, ports = address.removesuffix("/scores").split(":")
    assert (arguments["host"], str(arguments["port"])) == (hosts, ports)
    assert {name: arguments[name] for name in extra} == {
        name: ports if name == "port" else value for name, value in extra.items()
    }


@examples(max_examples=50, deadline=None)
@given(
    st.dictionaries(st.from_regex(r"[a-z_]{3,20}", fullmatch=True), st.text("ab=&?/ %", min_size=1))
)
def test_no_option_of_postgres_is_dropped(extra):
    connection = {"conn_type": "postgres", "host": "db", "schema": "scores", **KEY, "extra": extra}
    try:
        [url] = exported(POSTGRES, connection).values()
    except ConfigurationError as error:
        assert any(f"`{name}`" in str(error) for name in extra)
    else:
        assert dict(sa.make_url(url).query) == extra


@pytest.mark.parametrize(
    "connection",
    both_forms(
        "aws://key:secret@/?endpoint_url=https%3A%2F%2Fs3%3A9000&region_name=eu-west-1"
        "&aws_session_token=session&verify=%2Fetc%2Fhosts"
        "&config_kwargs=%7B%22s3%22%3A%7B%22addressing_style%22%3A%22virtual%22%7D%7D",
        {
            "conn_type": "aws", **KEY,
            "extra": {
                "service_config": {"s3": {"endpoint_url": "https://s3:9000"}},
                "region_name": "eu-west-1", "aws_session_token": "session",
                "verify": "/etc/hosts",
                "config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "virtual"}},
            },
        },
    ),
)  # fmt: skip
def test_options_of_s3_reach_both_clients(connection, monkeypatch):
    # What the environment says of S3 without a key is not mixed with the connection.
    monkeypatch.setenv("AWS_DEFAULT_REGION", "elsewhere")
    variables = exported(S3, connection)
    settings = Settings(_env_file=None, **variables)
    assert boto_options(settings) == {
        "endpoint_url": "https://s3:9000", "aws_access_key_id": "key",
        "aws_secret_access_key": "secret", "aws_session_token": "session",
        "region_name": "eu-west-1", "verify": "/etc/hosts",
    }  # fmt: skip
    assert boto_addressing(settings) == {"s3": {"addressing_style": "virtual"}}
    options = s3_options(settings)
    assert options["session_token"] == "session"
    assert options["virtual_hosted_style_request"] is True


def test_a_connection_replaces_what_the_environment_says_without_a_key(monkeypatch):
    for name in ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, "of the environment")
    monkeypatch.setenv("AIRFLOW_CONN_NIGHTSCORE_S3", "aws://key:secret@")
    assert export_connections((S3,))
    assert not {"AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"} & set(os.environ)
    assert not export_connections((S3,))  # it is there already


@pytest.mark.parametrize("verify", [False, "false", "False", 0])
def test_tls_without_a_check_reaches_all_clients(verify):
    variables = exported(S3, {"conn_type": "aws", **KEY, "extra": {"verify": verify}})
    settings = Settings(_env_file=None, **variables)
    assert boto_options(settings)["verify"] is False
    assert s3_options(settings)["client_options"]["allow_invalid_certificates"] is True
    fields = {"conn_type": "http", "host": "mlflow", "extra": {"verify": verify}}
    assert exported(MLFLOW, fields)["MLFLOW_TRACKING_INSECURE_TLS"] == "true"


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("https://mlflow", "https://mlflow"),
        ("https://mlflow/below/it", "https://mlflow/below/it"),
        ("http://mlflow:5000/https", "https://mlflow:5000"),
        ("http://https://mlflow:5000/below", "https://mlflow:5000/below"),
        ({"conn_type": "http", "host": "https://mlflow/below"}, "https://mlflow/below"),
        ({"conn_type": "http", "host": "mlflow", "schema": "https", "port": 1, "extra": {"path": "/below/"}},
         "https://mlflow:1/below"),
    ],
)  # fmt: skip
def test_mlflow_s_address_has_its_protocol_and_its_path(connection, address):
    assert exported(MLFLOW, connection) == {"MLFLOW_TRACKING_URI": address}


def test_mlflow_s_login_and_authorities_reach_its_clients():
    fields = {"conn_type": "https", "host": "mlflow", **KEY, "extra": {"verify": "/ca.pem"}}
    assert exported(MLFLOW, fields) == {
        "MLFLOW_TRACKING_URI": "https://mlflow",
        "MLFLOW_TRACKING_USERNAME": "key",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": "/ca.pem",
    }
    assert exported(MLFLOW, "https://mlflow?token=t")["MLFLOW_TRACKING_TOKEN"] == "t"


@pytest.mark.parametrize(
    ("connection_id", "fields", "names"),
    [
        (POSTGRES, {"host": "db", "schema": "s", "extra": {"cursor": "dictcursor"}}, "`cursor`"),
        (POSTGRES, {"host": "db", "schema": "s", "extra": {"dbname": "other"}}, "`dbname`"),
        (POSTGRES, {"host": "db", "schema": "s", "extra": {"sslmode": ["a"]}}, "`sslmode`"),
        (POSTGRES, {"host": "db", "schema": "s", "extra": "sslmode=require"}, "`extra`"),
        (POSTGRES, {"host": "db"}, "`schema`"),
        (POSTGRES, {"conn_type": "mysql", "host": "db", "schema": "s"}, "mysql"),
        (S3, {**KEY, "extra": {"role_arn": "arn:aws:iam::1:role/r"}}, "`role_arn`"),
        (S3, {**KEY, "extra": {"profile_name": "p"}}, "`profile_name`"),
        (S3, {**KEY, "extra": {"config_kwargs": {"s3": {"use_accelerate_endpoint": True}}}},
         "`config_kwargs.s3.use_accelerate_endpoint`"),
        (S3, {**KEY, "extra": {"config_kwargs": {"proxies": {}}}}, "`config_kwargs.proxies`"),
        (S3, {**KEY, "extra": {"service_config": {"sts": {}}}}, "`service_config.sts`"),
        (S3, {**KEY, "host": "s3.example"}, "`host`"),
        (S3, {"login": "key"}, "secret key"),
        (MLFLOW, {"host": "mlflow", "extra": {"timeout": 3}}, "`timeout`"),
        (MLFLOW, {"host": "mlflow", **KEY, "extra": {"token": "t"}}, "`token`"),
        (MLFLOW, {"schema": "https"}, "no host"),
    ],
)  # fmt: skip
def test_what_no_client_can_do_is_refused_by_name(connection_id, fields, names):
    with pytest.raises(ConfigurationError) as refused:
        exported(connection_id, fields)
    assert connection_id in str(refused.value)
    assert names in str(refused.value)
    assert "secret" not in str(refused.value) or names == "secret key"


def test_connections_serve_where_the_environment_says_nothing(monkeypatch):
    s3 = {"endpoint_url": "http://s3:9000", "region_name": "eu-west-1"}
    for name, connection in {
        POSTGRES: "postgres://me:p%40ss@db:5433/scores",
        S3: json.dumps({"conn_type": "aws", **KEY, "extra": s3}),
        MLFLOW: "http://you:pw@ignored:5000",
    }.items():
        monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", connection)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:1234")
    export_connections()
    settings = Settings(_env_file=None)
    assert settings.require_database_url() == "postgresql+psycopg2://me:p%40ss@db:5433/scores"
    assert (settings.s3_endpoint, settings.s3_region) == ("http://s3:9000", "eu-west-1")
    assert settings.s3_access_key == "key"
    assert settings.s3_secret_key.get_secret_value() == "secret"
    assert (settings.mlflow_uri, settings.mlflow_username) == ("http://mlflow:1234", "")


def test_an_environment_that_names_a_service_keeps_all_of_it(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert exported(S3, {"conn_type": "aws", **KEY, "extra": {"region_name": "eu-west-1"}}) == {}


def test_a_connection_that_is_not_defined_changes_nothing():
    assert not export_connections((POSTGRES, S3, MLFLOW))


def test_a_secrets_backend_that_fails_does_not_read_as_not_defined(monkeypatch, tmp_path):
    file = tmp_path / "connections.json"
    file.write_text("{")
    monkeypatch.setenv(
        "AIRFLOW__SECRETS__BACKEND", "airflow.secrets.local_filesystem.LocalFilesystemBackend"
    )
    monkeypatch.setenv(
        "AIRFLOW__SECRETS__BACKEND_KWARGS", json.dumps({"connections_file_path": str(file)})
    )
    with pytest.raises(ServiceError, match="nightscore_postgres"):
        export_connections((POSTGRES,))
    file.write_text(json.dumps({POSTGRES: "postgres://me:pw@db/scores"}))
    assert export_connections((POSTGRES,))
    assert os.environ["NIGHTSCORE_DATABASE_URL"] == "postgresql+psycopg2://me:pw@db:5432/scores"


class _Supervisor:
    """What a task asks for connections: answers as Airflow's supervisor does."""

    def __init__(self, error: ErrorType) -> None:
        self.answer = ErrorResponse(error=error)

    def send(self, message: object) -> ErrorResponse:
        return self.answer


def test_an_unreachable_api_server_does_not_read_as_not_defined(monkeypatch):
    failed = _Supervisor(ErrorType.API_SERVER_ERROR)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", failed, raising=False)
    with pytest.raises(ServiceError, match="nightscore_postgres"):
        export_connections((POSTGRES,))
    missing = _Supervisor(ErrorType.CONNECTION_NOT_FOUND)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", missing, raising=False)
    assert not export_connections((POSTGRES,))


def test_a_connection_that_airflow_refuses_to_a_task_is_no_reason_to_look_elsewhere(monkeypatch):
    refused = _Supervisor(ErrorType.PERMISSION_DENIED)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", refused, raising=False)
    with pytest.raises(ConfigurationError, match="refuses the connection nightscore_postgres"):
        export_connections((POSTGRES,))
