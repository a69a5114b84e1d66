"""The maintainer's sessions: one deletion at a time, and locks that nobody waits for long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.orm import Session

from ml.database.connection import maintainer_engine, rows
from ml.database.locking import retry_when_locked, set_lock_timeout
from ml.errors import ConfigurationError, ServiceError
from ml.timeouts import client_limits

# Whoever comes after a statement that waits for a table waits, too: a night at most for so long.
MAX_LOCK_WAIT_S = 0.5
_ONE_AT_A_TIME = sa.text("SELECT pg_try_advisory_lock(hashtext('nightscore.maintenance'))")


@contextmanager
def autocommit(engine: sa.Engine | None = None) -> Iterator[sa.Connection]:
    """Give a session in which each statement is a transaction, and which waits briefly for locks.

    Args:
        engine: With another login than the maintainer's.

    Yields:
        The connection, which is closed afterwards and not used again.
    """
    with (engine or maintainer_engine()).connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            set_lock_timeout(connection, min(MAX_LOCK_WAIT_S, client_limits().lock_timeout_s))
            yield connection
        finally:
            # It must not go back to the pool with its settings and locks.
            connection.invalidate()


@contextmanager
def transaction() -> Iterator[Session]:
    """Run a transaction as the maintainer: commit it at the end, roll it back on an error.

    Yields:
        The session to execute statements with.
    """
    with Session(maintainer_engine()) as session, session.begin():
        yield session


def retry(connection: sa.Connection, work: Callable[[], object], what: str) -> None:
    """Do work again until the locks that it needs are free; `what` names it in messages.

    Raises:
        ServiceError: The locks were not free for `NIGHTSCORE_MIGRATE_FOR_S`.
    """
    retry_when_locked(connection, work, what)


def run_composed(connection: sa.Connection, composed: sql.Composed) -> None:
    """Run a statement that names tables, which psycopg2 has quoted.

    Its errors are SQLAlchemy's, so that `retry` knows them.
    """
    driver: Any = connection.connection.dbapi_connection
    text = composed.as_string(driver)
    connection.exec_driver_sql(text, execution_options={"no_parameters": True})


@contextmanager
def alone() -> Iterator[None]:
    """Let one process delete at a time. Postgres ends the claim with the process.

    Raises:
        ConfigurationError: This login does not own the tables by night.
        ServiceError: Another process deletes.
    """
    with autocommit() as connection:
        _require_ownership(connection)
        if not connection.scalar(_ONE_AT_A_TIME):
            raise ServiceError("Another process deletes already.", "Wait until it has ended.")
        yield


def _require_ownership(connection: sa.Connection) -> None:
    missing = rows(connection, "retention/sql/not_owned")
    if missing:
        names = ", ".join(f"nightscore.{row['name']}" for row in missing)
        raise ConfigurationError(
            f"The login of NIGHTSCORE_MAINTAINER_URL does not own {names}.",
            "Create the role nightscore_maintainer and migrate (docs/production.md).",
        )
