"""Indexes of partitioned tables, built while others go on writing.

`CREATE INDEX` on a partitioned table locks out every writer until the last partition is done, and
`CONCURRENTLY` is not possible there. So each partition gets its index concurrently, and these are
attached to the index of the whole.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op

from ml.database.connection import rows
from ml.database.locking import retry_when_locked, set_lock_timeout
from ml.timeouts import client_limits


def create(revision_file: str, index: str) -> None:
    """Build the index of a migration; what was interrupted is continued by the next call.

    Args:
        revision_file: The revision's Python file. The `.sql` file beside it holds one statement,
            `CREATE INDEX IF NOT EXISTS ... ON ONLY nightscore.TABLE ...`, and nothing else.
        index: The name of that index, with its schema.
    """
    statement = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    with op.get_context().autocommit_block():
        build(op.get_bind(), statement, index)


def build(connection: sa.Connection, statement: str, index: str) -> None:
    """Build an index of a partitioned table, partition after partition.

    Args:
        connection: A session with autocommit, since Postgres builds nothing concurrently within a
            transaction.
        statement: Makes the index of the whole, `ON ONLY` the table itself.
        index: Its name, with its schema.

    Raises:
        ServiceError: Other sessions held the locks of a short statement for too long.
    """
    retry_when_locked(connection, lambda: _execute(connection, statement))
    # A night that begins meanwhile brings its own index along when its partition is attached.
    while missing := rows(connection, "database/sql/partitions_to_index", index=index):
        for partition in missing:
            _build_partition(connection, **partition)


def _build_partition(
    connection: sa.Connection,
    *,
    partition: str,
    is_broken: bool,
    drop_statement: str,
    create_statement: str,
    attach_statement: str,
) -> None:
    """Build the index of a partition and attach it."""
    # Nobody who reads or writes waits for these two, so they may wait for as long as they have to.
    set_lock_timeout(connection, 0)
    if is_broken:  # a build that failed leaves an index that is never used
        _execute(connection, drop_statement)
    _execute(connection, create_statement)
    set_lock_timeout(connection, client_limits().lock_timeout_s)
    retry_when_locked(connection, lambda: _execute(connection, attach_statement))


def _execute(connection: sa.Connection, statement: str) -> None:
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
