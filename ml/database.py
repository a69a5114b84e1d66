"""Postgres: connections, migrations, and statements read from `.sql` files."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date, datetime
from functools import lru_cache
from importlib import resources
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.orm import Session

from ml.errors import ServiceError
from ml.network import network, retrying
from ml.settings import settings

ADVISORY = {"migrate": 7_310_001}
POSTGRES_PORT = 5432
# Refusals that asking again does not change.
_LASTING = ("authentication failed", "does not exist", "permission denied", "translate host name")


@lru_cache(maxsize=4)
def _engine(url: str) -> sa.Engine:
    made = sa.create_engine(
        url,
        pool_size=2,
        max_overflow=4,
        pool_pre_ping=True,
        connect_args={"application_name": "nightscore", **network().postgres()},
    )
    sa.event.listen(made, "do_connect", _connect)
    sa.event.listen(made, "handle_error", _explain_connection_error)
    return made


def _connect(dialect: sa.Dialect, record: Any, arguments: Any, parameters: Any) -> Any:
    """A connection, asked for again while the server restarts."""
    return retrying(_may_pass, for_s=network().connect_for_s)(
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
    return _lost(context.engine, context.original_exception)


def _lost(engine: sa.Engine, error: BaseException) -> ServiceError:
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
    return _engine(settings().require_database_url())


def analyst_engine() -> sa.Engine:
    """The read-only analyst's engine of this process."""
    return _engine(settings().require_analyst_url())


@contextmanager
def session(*, frozen: bool = False) -> Iterator[Session]:
    """A transaction as the writer: committed at the end, rolled back on an error.

    `frozen` lets all its queries see the tables as they were at the first of them.
    """
    with Session(engine()) as current, current.begin():
        if frozen:
            current.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield current


@lru_cache(maxsize=64)
def statement(name: str) -> sa.TextClause:
    """The SQL statement in `ml/sql/NAME.sql`, with `:parameters`."""
    path = resources.files("ml") / "sql" / f"{name}.sql"
    return sa.text(path.read_text(encoding="utf-8"))


def rows(current: Session | sa.Connection, name: str, **parameters: Any) -> list[Mapping[str, Any]]:
    """The rows of the statement `NAME.sql`, as mappings."""
    return [dict(row) for row in current.execute(statement(name), parameters).mappings()]


def copy(
    current: Session | sa.Connection,
    table: str,
    columns: Iterable[str],
    values: Iterable[tuple[Any, ...]],
) -> None:
    """COPY rows into a table within the current transaction, streaming.

    Raises
    ------
    ServiceError: the connection was lost. What `values` raises passes through.
    """
    connection = current.connection() if isinstance(current, Session) else current
    lines = _Lines(map(_copy_line, values))
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    try:
        with closing(connection.connection.cursor()) as cursor:
            cursor.copy_expert(into, lines)
    except psycopg2.OperationalError as error:
        if lines.error is not None:
            raise lines.error from error
        # SQLAlchemy did not see this statement, and would roll back on a dead connection.
        connection.invalidate(error)
        raise _lost(connection.engine, error) from error


class _Lines:
    """A file to read from, made of lines; psycopg2 asks for blocks of bytes."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.rest = b""
        self.error: BaseException | None = None

    def read(self, size: int = 65536) -> bytes:
        try:
            return self._read(size)
        except BaseException as error:  # psycopg2 would make a cancelled query of it
            self.error = error
            raise

    def _read(self, size: int) -> bytes:
        parts, length = [self.rest], len(self.rest)
        while length < size:
            line = next(self.lines, None)
            if line is None:
                break
            parts.append(line.encode())
            length += len(parts[-1])
        block = b"".join(parts)
        self.rest = block[size:]
        return block[:size]


# https://www.postgresql.org/docs/18/sql-copy.html, "Text Format"
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\x00": "\ufffd"})


def _copy_line(row: tuple[Any, ...]) -> str:
    return "\t".join(map(_copy_field, row)) + "\n"


def _copy_field(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value)


def migrate() -> None:
    """Bring the tables, the views and the grants up to date, as the owner; safe to repeat.

    Two migrations at once wait for each other.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("ml") / "migrations"))
    with _engine(settings().require_owner_url()).begin() as connection:
        connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY["migrate"]}
        )
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS nightscore")
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS reporting")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        for path in sorted((resources.files("ml") / "sql" / "reporting").iterdir(), key=str):
            connection.exec_driver_sql(path.read_text(encoding="utf-8").replace("%", "%%"))
        grants = resources.files("ml") / "sql" / "grants.sql"
        connection.exec_driver_sql(grants.read_text(encoding="utf-8").replace("%", "%%"))


def is_migrated() -> bool:
    """Whether the tables are there at the newest revision, as far as the writer can see."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(resources.files("ml") / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine().connect() as connection:
        if not connection.scalar(sa.text("SELECT to_regclass('nightscore.alembic_version')")):
            return False
        return (
            connection.scalar(sa.text("SELECT version_num FROM nightscore.alembic_version")) == head
        )
