"""The partitions of the nights to come, made before a night needs them, and statistics."""

from datetime import date, timedelta
from functools import partial

import sqlalchemy as sa
from psycopg2 import sql

from ml.database.connection import engine, rows
from ml.retention import session as maintainer
from ml.retention.guard import open_runs
from ml.retention.night import TABLES
from ml.retention.session import run_composed

NIGHTS = 7
_VERSION_WITH_ONLY = 180_000


def make_partitions(today: date, nights: int = NIGHTS) -> list[date]:
    """Make the partitions of today and of the nights after it; returns those nights.

    Each is a short transaction of its own, and what is there already is left alone. The writer may
    make partitions, too, so an installation needs no maintainer for it.

    Args:
        today: The first night.
        nights: How many to make after it.
    """
    wanted = [today + timedelta(days=days) for days in range(nights + 1)]
    with maintainer.autocommit(engine()) as connection:
        for night in wanted:
            make = sa.select(sa.func.nightscore.ensure_night(night))
            work = partial(connection.execute, make)
            maintainer.retry(connection, work, f"The partition of {night}")
    return wanted


def analyse() -> bool:
    """Gather the statistics of the tables by night, which Postgres does not do by itself.

    Not while a run is open: its first image of a night without a partition would wait for it.

    Returns:
        Whether it was done.

    Raises:
        ConfigurationError: There is no login of the maintainer, who alone may.
    """
    with maintainer.autocommit() as connection:
        if open_runs(connection):
            return False
        # Before Postgres 18, the partitions are named with the table, and skipped: they are not
        # the maintainer's, and Postgres looks after them itself.
        version = connection.scalar(sa.text("SELECT current_setting('server_version_num')::int"))
        knows_only = (version or 0) >= _VERSION_WITH_ONLY
        owned = {row["name"] for row in rows(connection, "retention/sql/partitioned")}
        for table in TABLES:
            if table in owned:
                only = sql.SQL("ONLY " if knows_only else "")
                query = sql.SQL("ANALYZE {}nightscore.{}").format(only, sql.Identifier(table))
                work = partial(run_composed, connection, query)
                maintainer.retry(connection, work, f"The statistics of {table}")
    return True
