"""The revision of the tables: which one the database has, and which one this release needs."""

from functools import lru_cache
from importlib import resources

import sqlalchemy as sa

from ml.errors import ConfigurationError

_EXISTS = sa.text("SELECT to_regclass('nightscore.alembic_version') IS NOT NULL")
_REVISION = sa.text("SELECT version_num FROM nightscore.alembic_version")


@lru_cache(maxsize=1)
def release_revision() -> str:
    """Return the revision that this release needs: its newest migration, such as `0006`.

    It is read from the names of the files, as importing Alembic takes longer than a task's check.
    """
    folder = resources.files("ml.database") / "migrations" / "versions"
    return max(path.name[:4] for path in folder.iterdir() if path.name.endswith(".sql"))


def database_revision(connection: sa.Connection) -> str | None:
    """Return the revision of the tables; None if there are none."""
    if not connection.scalar(_EXISTS):
        return None
    revision: str | None = connection.scalar(_REVISION)
    return revision


def require_revision(connection: sa.Connection) -> None:
    """Check that the tables are not older than this release needs.

    Newer tables are allowed: what a release has begun, it finishes after the next one has migrated
    (docs/upgrades.md).

    Raises:
        ConfigurationError: The tables are older, or there are none.
    """
    revision, needed = database_revision(connection), release_revision()
    if revision is None or revision < needed:
        state = f"at revision {revision}" if revision else "without tables"
        raise ConfigurationError(
            f"The database is {state}, and this release needs {needed}.",
            "Migrate first, as the owner of the tables: `nightscore migrate`.",
        )
