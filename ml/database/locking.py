"""Locks on whole tables: short waits that are repeated, and the name of what blocks.

Migrations need them, and the deletion of old nights.

A statement that waits for a table makes everybody wait who comes after it. So it gives up after
`NIGHTSCORE_LOCK_TIMEOUT_S`, lets them pass, and tries again.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from psycopg2.errors import DeadlockDetected, LockNotAvailable

from ml.database.connection import rows
from ml.errors import ServiceError
from ml.timeouts import client_limits, retrying

log = logging.getLogger(__name__)

# How often the watcher asks during one wait for a lock.
_QUESTIONS_PER_WAIT = 4


def set_lock_timeout(connection: sa.Connection, timeout_s: float) -> None:
    """Set how long the statements of a session wait for a lock; 0 for without a limit."""
    milliseconds = {"limit": str(round(timeout_s * 1000))}
    connection.execute(sa.text("SELECT set_config('lock_timeout', :limit, false)"), milliseconds)


def retry_when_locked(
    connection: sa.Connection, work: Callable[[], object], what: str = "A migration"
) -> None:
    """Do work whose locks others may hold; again after each timeout, with random waits between.

    Args:
        connection: The session that does the work, with a lock timeout.
        work: Is repeated as a whole, so it must leave nothing behind when it fails.
        what: Names the work in messages.

    Raises:
        ServiceError: The locks were not free for `NIGHTSCORE_MIGRATE_FOR_S`. The message names the
            sessions that held them.
    """
    limit_s = client_limits().migrate_for_s
    # Asked of the driver, as a statement would begin a transaction.
    pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
    with _watch(connection.engine, pid, what) as blocking:
        try:
            retrying(_is_locked, timeout_s=limit_s)(work)
        except Exception as error:
            if not _is_locked(error):
                raise
            raise ServiceError(
                f"{what} did not get its locks within {limit_s:g} s. "
                f"Last in its way: {_describe(list(blocking))}.",
                "End these sessions, or try again when they have ended; nothing is half done.",
            ) from error


def _is_locked(error: BaseException) -> bool:
    """Whether another session was in the way. A lost connection is another failure."""
    original = getattr(error, "orig", None) or error.__cause__
    return isinstance(original, LockNotAvailable | DeadlockDetected)


@contextmanager
def _watch(engine: sa.Engine, pid: int, what: str) -> Iterator[list[Mapping[str, Any]]]:
    """Give a list that holds the sessions that last blocked a session, asked while it waits."""
    blocking: list[Mapping[str, Any]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(client_limits().lock_timeout_s / _QUESTIONS_PER_WAIT):
            # Without an answer the work goes on, and names less.
            with suppress(ServiceError, sa.exc.SQLAlchemyError), engine.connect() as connection:
                sessions = rows(connection, "database/sql/blocking_sessions", pid=pid)
                if sessions and sessions != blocking:
                    log.warning("%s waits for %s", what, _describe(sessions))
                    blocking[:] = sessions

    thread = threading.Thread(target=ask, name="blocking-sessions", daemon=True)
    thread.start()
    try:
        yield blocking
    finally:
        ended.set()
        thread.join()


def _describe(sessions: list[Mapping[str, Any]]) -> str:
    if not sessions:
        return "sessions that had ended before they could be named"
    return "; ".join(
        f"pid {session['pid']}, role {session['role']}, application "
        f"{session['application'] or 'unknown'}, its query began {_began(session)}"
        for session in sessions
    )


def _began(session: Mapping[str, Any]) -> str:
    started = session["started_at"]
    # An idle-in-transaction session has the start of its last query.
    return f"{started:%Y-%m-%d %H:%M:%S %Z}" if started else "at a time hidden from the owner"
