"""Bring the tables, the views and the grants up to date."""

from importlib import resources

import sqlalchemy as sa

from ml.database.connection import engine, engine_for
from ml.settings import settings

# The key of the advisory lock that lets one migration wait for another.
_LOCK_KEY = 7_310_001


def migrate() -> None:
    """Bring the tables, the views and the grants up to date, as the owner of the tables.

    It can be repeated, and processes that migrate at the same time wait for each other.

    Raises:
        ConfigurationError: The owner's database URL is not set.
        ServiceError: Postgres cannot be reached.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.files("ml.database") / "migrations"))
    with engine_for(settings().require_owner_url()).begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS nightscore")
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS reporting")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        for path in sorted((resources.files("ml.database") / "views").iterdir(), key=str):
            connection.exec_driver_sql(path.read_text(encoding="utf-8").replace("%", "%%"))
        grants = resources.files("ml.database") / "sql" / "grants.sql"
        connection.exec_driver_sql(grants.read_text(encoding="utf-8").replace("%", "%%"))


def is_migrated() -> bool:
    """Return whether the tables exist in the latest revision, seen with the writer's login."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(resources.files("ml.database") / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    with engine().connect() as connection:
        if not connection.scalar(sa.text("SELECT to_regclass('nightscore.alembic_version')")):
            return False
        version = sa.text("SELECT version_num FROM nightscore.alembic_version")
        return bool(connection.scalar(version) == head)
