"""The partitions of a night: made before its first rows, analysed after many of them.

The tables image, manifest, prediction and rejection are divided by night.
"""

from collections.abc import Iterable, Sequence
from datetime import date

import sqlalchemy as sa

from ml.database.connection import transaction


def ensure_nights(nights: Iterable[date]) -> None:
    """Make the partitions of nights where they are missing.

    Each night in a transaction of its own: while a partition is made, other streams wait.

    Raises:
        ServiceError: Postgres failed.
    """
    for night in nights:
        with transaction() as session:
            session.execute(sa.select(sa.func.nightscore.ensure_night(night)))


def analyze_nights(nights: Iterable[date], tables: Sequence[str]) -> None:
    """Gather the statistics of nights of which many rows have just been stored.

    Without them Postgres expects one row where there may be a million, until autovacuum comes
    round, and may plan a join that takes quadratic time (docs/decisions/0028-partitions.md).

    Args:
        nights: The nights.
        tables: Names of the tables.

    Raises:
        ServiceError: Postgres failed.
    """
    for night in nights:
        with transaction() as session:
            session.execute(sa.select(sa.func.nightscore.analyze_night(night, list(tables))))
