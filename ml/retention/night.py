"""The tables by night: their partitions, and which streams have rows in them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa

from ml.database.connection import rows, statement

# In the order in which a night is removed. No view shows a result without its image then, nor an
# image that a run still has to score.
TABLES = ("manifest", "prediction", "rejection", "image")
_STREAMS = {"manifest": "retention/sql/manifest_streams", "image": "retention/sql/image_streams"}


@dataclass(frozen=True)
class Partition:
    """A partition of a table.

    Attributes:
        table: The table, one of `TABLES`.
        name: The partition's own name.
        first_night: The first night that it holds; None if it holds all before `next_night`.
        next_night: The first night after those that it holds.
        rows: How many rows it has, as Postgres estimates.
        bytes: Its size with its indexes, in bytes.
    """

    table: str
    name: str
    first_night: date | None
    next_night: date
    rows: int
    bytes: int


def partitions(connection: sa.Connection) -> list[Partition]:
    """Return the partitions of all tables; those that are being detached are among them."""
    return [
        Partition(
            row["table_name"],
            row["name"],
            row["first_night"],
            row["next_night"],
            row["rows"],
            row["bytes"],
        )
        for row in rows(connection, "retention/sql/partitions")
    ]


def by_night(all_partitions: Iterable[Partition]) -> dict[date, dict[str, Partition]]:
    """Return night → table → its partition, by night; without those that hold many nights."""
    nights: dict[date, dict[str, Partition]] = defaultdict(dict)
    for partition in all_partitions:
        if partition.first_night is not None:
            nights[partition.first_night][partition.table] = partition
    return dict(sorted(nights.items()))


def streams(connection: sa.Connection, table: str, night: date) -> list[str]:
    """Return the streams that have rows of a night in `manifest` or `image`."""
    return list(connection.scalars(statement(_STREAMS[table]), {"night": night}))
