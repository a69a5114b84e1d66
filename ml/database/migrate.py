"""Bring the tables, the views and the grants up to date, while others read and write.

Migrations run one by one, each in a transaction of its own; one that is interrupted is rolled back.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import sqlalchemy as sa

from ml.database.connection import engine_for
from ml.database.locking import retry_when_locked, set_lock_timeout
from ml.database.schema import database_revision, release_revision
from ml.errors import ServiceError
from ml.settings import settings
from ml.timeouts import client_limits, retrying

log = logging.getLogger(__name__)

# The key of the advisory lock that lets one migration wait for another.
_LOCK_KEY = 7_310_001
_TRY_LOCK = sa.text("SELECT pg_try_advisory_lock(:key)")
# A migration may build an index for hours.
_UNLIMITED = "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"


def migrate() -> None:
    """Bring the tables, the views and the grants up to date, as the owner of the tables.

    It can be repeated, and processes that migrate at the same time wait for each other.

    Raises:
        ConfigurationError: The owner's database URL is not set.
        ServiceError: Postgres cannot be reached, or other sessions held locks for too long.
    """
    with _session() as connection:
        retry_when_locked(connection, lambda: _upgrade(connection))
        retry_when_locked(connection, lambda: _replace_views(connection))
        retry_when_locked(connection, lambda: _hand_over(connection))


@contextmanager
def _session() -> Iterator[sa.Connection]:
    """A session of the owner, without time limits of statements, that alone migrates."""
    with engine_for(settings().require_owner_url()).connect() as connection:
        try:
            connection.exec_driver_sql(_UNLIMITED)
            set_lock_timeout(connection, client_limits().lock_timeout_s)
            connection.commit()
            retrying(
                lambda error: isinstance(error, _MigrationRunsError),
                timeout_s=client_limits().statement_timeout_s,
            )(_take_migration_lock, connection)
            yield connection
        finally:
            # It must not go back to the pool with its settings and its lock.
            connection.invalidate()


class _MigrationRunsError(ServiceError):
    """Another migration is at work."""


def _take_migration_lock(connection: sa.Connection) -> None:
    """Take the lock of migrations until the session ends.

    It is asked for again and again. A session that waited in one statement would be a transaction
    that CREATE INDEX CONCURRENTLY waits for, so two migrations would wait for each other.
    """
    taken = connection.scalar(_TRY_LOCK, {"key": _LOCK_KEY})
    connection.commit()
    if not taken:
        raise _MigrationRunsError("Another migration is at work.", "Wait until it has ended.")


def _upgrade(connection: sa.Connection) -> None:
    """Run the migrations that the database has not had yet."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("ml.database") / "migrations"))
    connection.rollback()  # what an attempt before has left open
    with connection.begin():
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS nightscore")
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS reporting")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()  # Alembic reads the revision, and leaves that transaction open


def _replace_views(connection: sa.Connection) -> None:
    """Make the views and the grants those of this release, all at once."""
    views = sorted((resources.files("ml.database") / "views").iterdir(), key=str)
    grants = resources.files("ml.database") / "sql" / "grants.sql"
    with connection.begin():
        for path in (*views, grants):
            connection.exec_driver_sql(path.read_text(encoding="utf-8").replace("%", "%%"))


def _hand_over(connection: sa.Connection) -> None:
    """Make the tables by night the maintainer's, once; the lock that it takes is short."""
    file = resources.files("ml.database") / "sql" / "maintainer.sql"
    with connection.begin():
        connection.exec_driver_sql(file.read_text(encoding="utf-8").replace("%", "%%"))


def is_migrated() -> bool:
    """Return whether the tables are as new as this release needs, seen with the writer's login."""
    with engine_for(settings().require_database_url()).connect() as connection:
        return (database_revision(connection) or "") >= release_revision()
