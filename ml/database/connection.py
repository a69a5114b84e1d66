"""Postgres: connections, migrations, and statements read from `.sql` files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from typing import Any

import psycopg2
import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.errors import ServiceError
from ml.settings import settings
from ml.timeouts import client_limits, retrying

POSTGRES_PORT = 5432
# Refusals that asking again does not change.
_LASTING = ("authentication failed", "does not exist", "permission denied", "translate host name")


@lru_cache(maxsize=4)
def engine_of(url: str) -> sa.Engine:
    made = sa.create_engine(
        url,
        pool_size=2,
        max_overflow=4,
        pool_pre_ping=True,
        connect_args={"application_name": "nightscore", **client_limits().postgres_arguments()},
    )
    sa.event.listen(made, "do_connect", _connect)
    sa.event.listen(made, "handle_error", _explain_connection_error)
    return made


def _connect(dialect: sa.Dialect, record: Any, arguments: Any, parameters: Any) -> Any:
    """A connection, asked for again while the server restarts."""
    return retrying(_may_pass, timeout_s=client_limits().connect_for_s)(
        dialect.connect, *arguments, **parameters
    )


def _may_pass(error: BaseException) -> bool:
    refused = isinstance(error, psycopg2.OperationalError)
    return refused and not any(lasting in str(error) for lasting in _LASTING)


def _explain_connection_error(context: sa.engine.ExceptionContext) -> ServiceError | None:
    """Turn a lost or refused connection into a line that says where and what to do."""
    lost = isinstance(context.original_exception, psycopg2.OperationalError)
    if not lost or context.is_pre_ping or context.engine is None:
        return None
    return connection_lost(context.engine, context.original_exception)


def connection_lost(engine: sa.Engine, error: BaseException) -> ServiceError:
    url = engine.url
    reason = " ".join(str(error).split())
    return ServiceError(
        f"Postgres failed at {place(url)} as {url.username}: {reason}",
        "Run `nightscore up` for the local stack, or `nightscore doctor` to see what is wrong.",
    )


def place(url: sa.URL) -> str:
    """Where a URL leads, in words: HOST:PORT/DATABASE with the defaults of Postgres's clients."""
    host = f"{url.host}:{url.port or POSTGRES_PORT}" if url.host else "the local socket"
    return f"{host}/{url.database}"


def engine() -> sa.Engine:
    """The writer's engine of this process."""
    return engine_of(settings().require_database_url())


def analyst_engine() -> sa.Engine:
    """The read-only analyst's engine of this process."""
    return engine_of(settings().require_analyst_url())


@contextmanager
def transaction(*, frozen: bool = False) -> Iterator[Session]:
    """A transaction as the writer: committed at the end, rolled back on an error.

    `frozen` lets all its queries see the tables as they were at the first of them.
    """
    with Session(engine()) as session, session.begin():
        if frozen:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


@lru_cache(maxsize=64)
def statement(name: str) -> sa.TextClause:
    """The SQL statement in `ml/NAME.sql`, such as "scoring/sql/plan_shards", with
    `:parameters`.
    """
    path = resources.files("ml") / f"{name}.sql"
    return sa.text(path.read_text(encoding="utf-8"))


def rows(session: Session | sa.Connection, name: str, **parameters: Any) -> list[Mapping[str, Any]]:
    """The rows of the statement `NAME.sql`, as mappings."""
    return [dict(row) for row in session.execute(statement(name), parameters).mappings()]
