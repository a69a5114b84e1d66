"""The sums of results (migration 0010), computed again from the rows of a night.

Triggers keep them while results are stored. What changes rows in another way, such as a camera that
is assigned later, computes the night's sums again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import TypeVar

import sqlalchemy as sa
from psycopg2.errors import SerializationFailure, UniqueViolation

from ml.database.connection import engine
from ml.timeouts import retrying

Value = TypeVar("Value")

# Tries beside others who store results of the night, before they are held up.
_FREE_ATTEMPTS = 3
_MAX_ATTEMPTS = 20
_ISOLATION = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ"
# Taken by whoever merges the results of a stream's shard, until its transaction ends.
MERGE_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext(:stream))")
# The same lock, held by the session: a transaction that waits for it would have taken its snapshot
# before.
_LOCK = sa.text("SELECT pg_advisory_lock(hashtext('merge'), hashtext(:stream))")
_UNLOCK = sa.text("SELECT pg_advisory_unlock(hashtext('merge'), hashtext(:stream))")


def sum_night(stream: str, night: date) -> bool:
    """Compute the sums of a stream's night again, while others may store results of it.

    Args:
        stream: The stream.
        night: The night.

    Returns:
        Whether they were computed. The sums of a night of which rows have been deleted, since
        their time is over, stay as they are.

    Raises:
        ServiceError: Postgres failed.
    """
    call = sa.select(sa.func.nightscore.sum_night(stream, night))
    with engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # it must not go back to the pool with its settings
        connection.exec_driver_sql(_ISOLATION)
        return bool(with_one_snapshot(connection, stream, lambda: connection.scalar(call)))


def with_one_snapshot(
    connection: sa.Connection, stream: str, statement: Callable[[], Value]
) -> Value:
    """Run a statement that sums a night, again after results came in between.

    On a night that is being scored, results may come in between each time. So after a few tries the
    stream's merges have to wait until the statement has ended: two seconds per half a million
    images.

    Args:
        connection: A session with autocommit and REPEATABLE READ.
        stream: The stream.
        statement: Runs the statement; it is a transaction of its own.
    """
    try:
        return _retry(_FREE_ATTEMPTS, statement)
    except Exception as error:
        if not _is_conflict(error):
            raise
    with _merges_held_up(connection, stream):
        return _retry(_MAX_ATTEMPTS, statement)


def _retry(attempts: int, statement: Callable[[], Value]) -> Value:
    value: Value = retrying(_is_conflict, max_attempts=attempts)(statement)
    return value


@contextmanager
def _merges_held_up(connection: sa.Connection, stream: str) -> Iterator[None]:
    connection.execute(_LOCK, {"stream": stream})
    try:
        yield
    finally:
        connection.execute(_UNLOCK, {"stream": stream})


def _is_conflict(error: BaseException) -> bool:
    original = getattr(error, "orig", None) or error.__cause__
    return isinstance(original, SerializationFailure | UniqueViolation)
