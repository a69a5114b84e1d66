"""Connections to Postgres, and statements read from `.sql` files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2.errors import OutOfMemory
from sqlalchemy.orm import Session

from ml.database.schema import require_revision
from ml.errors import ServiceError
from ml.settings import settings
from ml.timeouts import client_limits, retrying

POSTGRES_PORT = 5432
# Parts of the messages of errors that a retry does not change.
_PERMANENT = ("authentication failed", "does not exist", "permission denied", "translate host name")


@lru_cache(maxsize=4)
def engine_for(url: str) -> sa.Engine:
    """Return the engine for a database URL, which is created once per process."""
    engine = sa.create_engine(
        url,
        pool_size=2,
        max_overflow=4,
        pool_pre_ping=True,
        connect_args=connect_arguments(sa.make_url(url)),
    )
    sa.event.listen(engine, "do_connect", _connect)
    sa.event.listen(engine, "handle_error", _explain_connection_error)
    return engine


def connect_arguments(url: sa.URL) -> dict[str, Any]:
    """Return our arguments of a connection, except for those that the URL sets.

    SQLAlchemy prefers arguments to the URL. The URL's `options` come after ours, so that they win.
    """
    ours = {"application_name": "nightscore", **client_limits().postgres_arguments()}
    arguments = {name: value for name, value in ours.items() if name not in url.query}
    if "options" in url.query:
        theirs = " ".join(_as_tuple(url.query["options"]))
        arguments["options"] = f"{ours['options']} {theirs}"
    return arguments


def _connect(dialect: sa.Dialect, record: Any, arguments: Any, parameters: Any) -> Any:
    """Connect, with retries that bridge a restart of the server."""
    return retrying(_is_transient, timeout_s=client_limits().connect_for_s)(
        dialect.connect, *arguments, **parameters
    )


def _is_transient(error: BaseException) -> bool:
    is_refused = isinstance(error, psycopg2.OperationalError)
    return is_refused and not any(message in str(error) for message in _PERMANENT)


def _explain_connection_error(context: sa.engine.ExceptionContext) -> ServiceError | None:
    is_lost = isinstance(context.original_exception, psycopg2.OperationalError)
    if not is_lost or context.is_pre_ping or context.engine is None:
        return None
    return connection_error(context.engine, context.original_exception)


def connection_error(engine: sa.Engine, error: BaseException) -> ServiceError:
    """Return the error to raise when a connection is refused or lost, or the lock table is full.

    Its message has the server's address and the user name, and no password.
    """
    url = engine.url
    reason = " ".join(str(error).split())
    if _is_lock_table_full(error):
        return ServiceError(
            f"The lock table of Postgres is full at {describe_address(url)}, for {url.username}: "
            "the sessions hold more locks than max_locks_per_transaction has room for.",
            "Set max_locks_per_transaction in postgresql.conf higher and restart Postgres; "
            "`nightscore doctor` says how many this installation needs. A statement locks each "
            "partition whose night it does not exclude: name the nights.",
        )
    return ServiceError(
        f"Postgres failed at {describe_address(url)} as {url.username}: {reason}",
        "Run `nightscore up` for the local stack, or `nightscore doctor` to see what is wrong.",
    )


def _is_lock_table_full(error: BaseException) -> bool:
    """Whether shared memory had no room for a lock; the server says so in the hint only."""
    return isinstance(error, OutOfMemory) and "max_locks_per_transaction" in str(error)


def describe_address(url: sa.URL) -> str:
    """Return HOST:PORT/DATABASE of a URL, with the defaults of Postgres's clients."""
    if "host" in url.query:  # several hosts, or the folder of a socket
        address = ",".join(_as_tuple(url.query["host"]))
        ports = ",".join(_as_tuple(url.query.get("port", ())))
        address += f":{ports}" if ports else ""
    else:
        address = f"{url.host}:{url.port or POSTGRES_PORT}" if url.host else "the local socket"
    return f"{address}/{url.database}"


def _as_tuple(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else values


def engine() -> sa.Engine:
    """Return the engine with the writer's login.

    Raises:
        ConfigurationError: The URL is not set, or the tables are older than this release needs.
        ServiceError: Postgres cannot be reached.
    """
    engine = engine_for(settings().require_database_url())
    _require_revision_once(engine)
    return engine


@lru_cache(maxsize=4)
def _require_revision_once(engine: sa.Engine) -> None:
    """Check the tables before the first step of a process; an error is not cached."""
    with engine.connect() as connection:
        require_revision(connection)


def maintainer_engine() -> sa.Engine:
    """Return the engine with the login that deletes what `retention` limits.

    Raises:
        ConfigurationError: The URL is not set, or the tables are older than this release needs.
        ServiceError: Postgres cannot be reached.
    """
    engine = engine_for(settings().require_maintainer_url())
    _require_revision_once(engine)
    return engine


def analyst_engine() -> sa.Engine:
    """Return the engine with the read-only analyst's login."""
    return engine_for(settings().require_analyst_url())


@contextmanager
def transaction(*, repeatable_read: bool = False) -> Iterator[Session]:
    """Run a transaction as the writer: commit it at the end, roll it back on an error.

    Args:
        repeatable_read: Whether all queries see the tables as they were at the first query.

    Yields:
        The session to execute statements with.
    """
    with Session(engine()) as session, session.begin():
        if repeatable_read:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


@lru_cache(maxsize=64)
def statement(name: str) -> sa.TextClause:
    """Return the statement in `ml/NAME.sql`, with `:parameters`.

    Args:
        name: Path without its ending, such as "scoring/sql/merge_scored".
    """
    path = resources.files("ml") / f"{name}.sql"
    return sa.text(path.read_text(encoding="utf-8"))


def rows(session: Session | sa.Connection, name: str, **parameters: Any) -> list[Mapping[str, Any]]:
    """Return the rows of the statement `ml/NAME.sql`, as mappings of column names to values."""
    return [dict(row) for row in session.execute(statement(name), parameters).mappings()]
