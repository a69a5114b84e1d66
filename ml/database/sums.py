"""The sums of results (migration 0010), computed again from the rows of a night.

Triggers keep them while results are stored. What changes rows in another way, such as a camera that
is assigned later, computes the night's sums again.
"""

from collections.abc import Callable
from datetime import date
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
from psycopg2.errors import SerializationFailure, UniqueViolation

from ml.database.connection import transaction
from ml.timeouts import retrying

P = ParamSpec("P")
Value = TypeVar("Value")

_MAX_ATTEMPTS = 20


def sum_night(stream: str, night: date) -> bool:
    """Compute the sums of a stream's night again; nobody who stores results waits for it.

    Args:
        stream: The stream.
        night: The night.

    Returns:
        Whether they were computed. The sums of a night of which rows have been deleted, since
        their time is over, stay as they are.

    Raises:
        ServiceError: Postgres failed.
    """
    return retry_conflicts(_sum_night, stream, night)


def retry_conflicts(work: Callable[P, Value], *arguments: P.args, **named: P.kwargs) -> Value:
    """Do work in transactions with REPEATABLE READ, again if others stored results meanwhile."""
    value: Value = retrying(_is_conflict, max_attempts=_MAX_ATTEMPTS)(work, *arguments, **named)
    return value


def _sum_night(stream: str, night: date) -> bool:
    with transaction(repeatable_read=True) as session:
        return bool(session.scalar(sa.select(sa.func.nightscore.sum_night(stream, night))))


def _is_conflict(error: BaseException) -> bool:
    original = getattr(error, "orig", None) or error.__cause__
    return isinstance(original, SerializationFailure | UniqueViolation)
