"""Airflow's connections as the environment variables that `ml.settings` reads.

Tasks and the pages of the API server use them; `ml` itself does not know Airflow. What a connection
says reaches the clients, or is refused by name.
"""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode

from ml.errors import ConfigurationError, ServiceError

POSTGRES, ANALYST = "nightscore_postgres", "nightscore_analyst"
MAINTAINER = "nightscore_maintainer"
S3, MLFLOW = "nightscore_s3", "nightscore_mlflow"
# What tasks use, those that delete `MAINTAINER`, too; the API server uses `ANALYST` and `S3`.
OF_TASKS = (POSTGRES, S3, MLFLOW)

# Fields of a connection that libpq also knows as options.
_FIELDS_OF_POSTGRES = {"user": "login", "password": "password", "dbname": "schema", "host": "host"}
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}


class _Service(NamedTuple):
    """How a connection becomes variables.

    Attributes:
        marker: the variable that shows that the environment describes the service.
        variables: all variables of the service.
        convert: turns the connection into variables.
    """

    marker: str
    variables: tuple[str, ...]
    convert: Callable[[Any], dict[str, str]]


def export_connections(connection_ids: Iterable[str] = OF_TASKS) -> bool:
    """Put what Airflow's connections say into the environment.

    All of a service comes from the environment or from the connection, never half from each: a
    service whose address or key the environment has keeps its variables, and a connection replaces
    all variables of its service. A connection that is not defined changes nothing; code that needs
    the service reports what is missing.

    Args:
        connection_ids: the connections, such as `nightscore_s3`.

    Returns:
        Whether a variable has changed.

    Raises:
        ConfigurationError: a connection has an option that no client of ours knows.
        ServiceError: Airflow cannot say whether a connection is defined; a retry may help.
    """
    before = dict(os.environ)
    for connection_id in connection_ids:
        service = _SERVICES[connection_id]
        if _is_set(service.marker):
            continue
        connection = _get(connection_id)
        if connection is None:
            continue
        values = service.convert(connection)
        for name in service.variables:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in values.items() if value})
    return dict(os.environ) != before


def _get(connection_id: str) -> Any:
    """The connection; None when no secrets backend has it."""
    from airflow.sdk import Connection
    from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

    try:
        return Connection.get(connection_id)
    except AirflowNotFoundException:
        # Airflow also says so when a backend has failed.
        _check_backends(connection_id)
        return None
    except PermissionError as error:
        raise ConfigurationError(
            f"Airflow refuses the connection {connection_id}: {error}"
        ) from error
    except AirflowRuntimeError as error:
        raise _lookup_error(connection_id, error) from error


def _check_backends(connection_id: str) -> None:
    """Ask each secrets backend again, and raise the error that Airflow leaves out."""
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection
    from airflow.sdk.execution_time.secrets.execution_api import ExecutionAPISecretsBackend
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    for backend in ensure_secrets_backend_loaded():
        try:
            if isinstance(backend, ExecutionAPISecretsBackend):
                answer = task_runner.SUPERVISOR_COMMS.send(GetConnection(conn_id=connection_id))
            else:
                answer = backend.get_connection(conn_id=connection_id)
        except Exception as error:
            raise _lookup_error(connection_id, error) from error
        if isinstance(answer, ErrorResponse) and answer.error != ErrorType.CONNECTION_NOT_FOUND:
            raise _lookup_error(connection_id, f"{answer.error} {answer.detail or ''}")


def _lookup_error(connection_id: str, reason: object) -> ServiceError:
    text = " ".join(str(reason).split()) or type(reason).__name__
    return ServiceError(f"Airflow cannot look up the connection {connection_id}: {text}")


def _postgres_url(connection: Any) -> str:
    """A connection as SQLAlchemy's URL, with libpq's options as its query."""
    from psycopg2 import ProgrammingError
    from psycopg2.extensions import make_dsn

    _check_type(connection, "postgres")
    if not connection.schema:
        _refuse(connection, "it names no database (its field `schema`)")
    options = _options(connection)
    for name in options:
        if name in _FIELDS_OF_POSTGRES:
            _refuse(
                connection, f"set its field `{_FIELDS_OF_POSTGRES[name]}`, not the option `{name}`"
            )
        if name == "port" and connection.port:
            _refuse(connection, "set its field `port` or its option `port`, not both")
        try:
            make_dsn(**{name: "0"})  # it knows libpq's options
        except ProgrammingError:
            _refuse(connection, f"Postgres's client has no option `{name}`")
    query = {name: _text(connection, name, value) for name, value in options.items()}
    login = ":".join(
        quote(text, safe="") for text in (connection.login, connection.password) if text
    )
    return _sqlalchemy_url(connection, login, query)


def _sqlalchemy_url(connection: Any, login: str, query: dict[str, str]) -> str:
    host = connection.host or ""
    address = f"{host}:{connection.port or 5432}"
    # Several hosts, or the folder of a socket.
    if "," in host or not host or host.startswith("/") or "port" in query:
        ports = query.pop("port", str(connection.port or 5432)).split(",")
        hosts = host.split(",")
        if len(ports) == 1:
            ports *= len(hosts)
        if host:
            query["host"] = host
        query["port"] = ",".join(ports)
        address = ""
    options = f"?{urlencode(query, quote_via=quote)}" if query else ""
    database = quote(connection.schema, safe="")
    return f"postgresql+psycopg2://{login}{'@' if login else ''}{address}/{database}{options}"


def _s3_variables(connection: Any) -> dict[str, str]:
    """A connection of type `aws`, with the extras of Airflow's provider that our clients follow."""
    _check_type(connection, "aws")
    for field in ("host", "port", "schema"):
        if getattr(connection, field):
            _refuse(connection, f"its field `{field}` is not used; the address is `endpoint_url`")
    extras = _options(connection)
    service = _section(connection, extras, "service_config", "s3")
    config = _section(connection, extras, "config_kwargs", "s3", beside={"signature_version"})

    def take(*names: str, of: dict[str, Any] = extras) -> str:
        values = {_text(connection, name, of.pop(name)) for name in names if name in of}
        if len(values) > 1:
            _refuse(connection, f"`{'` and `'.join(names)}` contradict each other")
        return values.pop() if values else ""

    if take("signature_version", of=config) not in ("", "s3v4"):
        _refuse(connection, "`config_kwargs.signature_version` can only be s3v4")
    style = take("addressing_style", of=config)
    if style not in ("", "auto", "path", "virtual"):
        _refuse(connection, "`config_kwargs.s3.addressing_style` is auto, path or virtual")
    ca_bundle, insecure = _verification(connection, extras)
    key = connection.login or take("aws_access_key_id")
    secret = connection.password or take("aws_secret_access_key")
    if bool(key) != bool(secret):
        _refuse(connection, "it has a key id or a secret key, but not both")
    variables = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": take("aws_session_token", "session_token"),
        # Not AWS_ENDPOINT_URL, which clients of other services follow, too.
        "AWS_ENDPOINT_URL_S3": take("endpoint_url", of=service) or take("endpoint_url"),
        "AWS_REGION": take("region_name"),
        "AWS_CA_BUNDLE": ca_bundle,
        "NIGHTSCORE_S3_INSECURE_TLS": insecure,
        "NIGHTSCORE_S3_ADDRESSING_STYLE": "" if style == "auto" else style,
    }
    _refuse_rest(connection, extras)
    _refuse_rest(connection, config, "config_kwargs.s3.")
    _refuse_rest(connection, service, "service_config.s3.")
    return variables


def _mlflow_variables(connection: Any) -> dict[str, str]:
    _check_type(connection, "http", "https", "mlflow")
    extras = _options(connection)
    address = _mlflow_address(connection, extras)
    ca_bundle, insecure = _verification(connection, extras)
    bearer = _text(connection, "token", extras.pop("token", ""))
    if bearer and connection.login:
        _refuse(connection, "it has a login and a `token`; MLflow takes one of them")
    _refuse_rest(connection, extras)
    return {
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_TRACKING_USERNAME": connection.login or "",
        "MLFLOW_TRACKING_PASSWORD": connection.password or "",
        "MLFLOW_TRACKING_TOKEN": bearer,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": ca_bundle,
        "MLFLOW_TRACKING_INSECURE_TLS": insecure,
    }


def _mlflow_address(connection: Any, extras: dict[str, Any]) -> str:
    """MLflow's URL; a `schema` that is no protocol is the path below which MLflow is served."""
    if not connection.host:
        _refuse(connection, "it names no host")
    protocol, separator, host = connection.host.rpartition("://")
    path = _text(connection, "path", extras.pop("path", ""))
    schema = connection.schema or ""
    if not separator:
        protocol = "https" if connection.conn_type == "https" else "http"
    if schema in ("http", "https"):
        if protocol == "https" and schema == "http":
            _refuse(connection, "its type or host says https, its `schema` http")
        protocol = schema
    elif schema and path:
        _refuse(connection, "it has the path twice, as `schema` and as `path`")
    else:
        path = path or schema
    host, _, rest = host.partition("/")
    port = f":{connection.port}" if connection.port else ""
    whole = "/".join(part for part in (rest.strip("/"), path.strip("/")) if part)
    return f"{protocol}://{host}{port}" + (f"/{whole}" if whole else "")


def _verification(connection: Any, extras: dict[str, Any]) -> tuple[str, str]:
    """The option `verify`, as boto3 knows it: the CA bundle, and "true" for no check."""
    value = _text(connection, "verify", extras.pop("verify", ""))
    if value.lower() in _FALSE:
        return "", "true"
    return ("" if value.lower() in _TRUE else value), ""


def _section(
    connection: Any,
    extras: dict[str, Any],
    name: str,
    inner: str,
    beside: set[str] | frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The options in `extras[name][inner]`, with those of `extras[name]` that `beside` names."""
    outer = _object(connection, name, extras.pop(name, None) or {})
    options = _object(connection, f"{name}.{inner}", outer.pop(inner, None) or {})
    options |= {option: outer.pop(option) for option in beside if option in outer}
    _refuse_rest(connection, outer, f"{name}.")
    return options


def _options(connection: Any) -> dict[str, Any]:
    """The extras that have a value. Airflow reads extras that are not JSON as none."""
    options = _object(connection, "extra", connection.extra or {})
    return {name: value for name, value in options.items() if value not in (None, "")}


def _object(connection: Any, name: str, value: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        _refuse(connection, f"`{name}` is not a JSON object")
    return dict(parsed)


def _text(connection: Any, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str | int | float):
        _refuse(connection, f"`{name}` is neither a text nor a number")
    return str(value)


def _check_type(connection: Any, *types: str) -> None:
    if connection.conn_type not in (None, "", "generic", *types):
        _refuse(connection, f"its type is {connection.conn_type}, not {types[0]}")


def _refuse_rest(connection: Any, options: dict[str, Any], prefix: str = "") -> None:
    for name in options:
        _refuse(connection, f"Nightscore's clients have no option `{prefix}{name}`")


def _refuse(connection: Any, problem: str) -> NoReturn:
    raise ConfigurationError(
        f"The Airflow connection {connection.conn_id} cannot be used: {problem}.",
        "docs/configuration.md has the fields and options of each connection.",
    )


_SERVICES = {
    POSTGRES: _Service(
        "NIGHTSCORE_DATABASE_URL",
        ("NIGHTSCORE_DATABASE_URL",),
        lambda connection: {"NIGHTSCORE_DATABASE_URL": _postgres_url(connection)},
    ),
    ANALYST: _Service(
        "NIGHTSCORE_ANALYST_URL",
        ("NIGHTSCORE_ANALYST_URL",),
        lambda connection: {"NIGHTSCORE_ANALYST_URL": _postgres_url(connection)},
    ),
    MAINTAINER: _Service(
        "NIGHTSCORE_MAINTAINER_URL",
        ("NIGHTSCORE_MAINTAINER_URL",),
        lambda connection: {"NIGHTSCORE_MAINTAINER_URL": _postgres_url(connection)},
    ),
    S3: _Service(
        "AWS_ACCESS_KEY_ID",
        (
            *(
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
                "AWS_ENDPOINT_URL",
            ),
            *("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"),
            *("NIGHTSCORE_S3_INSECURE_TLS", "NIGHTSCORE_S3_ADDRESSING_STYLE"),
        ),
        _s3_variables,
    ),
    MLFLOW: _Service(
        "MLFLOW_TRACKING_URI",
        (
            *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
            *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH"),
            "MLFLOW_TRACKING_INSECURE_TLS",
        ),
        _mlflow_variables,
    ),
}


def _is_set(variable: str) -> bool:
    from ml.settings import STACK_ENV, state_folder

    path = state_folder() / STACK_ENV
    return variable in os.environ or (
        path.exists() and f"{variable}=" in path.read_text(encoding="utf-8")
    )
