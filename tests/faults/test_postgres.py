"""Postgres is killed and restarts in the middle of a merge."""

import random
import time
from contextlib import contextmanager

import psutil
import psycopg2
import pytest
import sqlalchemy as sa

from ml.database.connection import engine
from ml.scoring import steps
from ml.settings import settings
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import Scoring, ScoringFailedError

_WAITING = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@contextmanager
def _merges_wait(stream: str):
    """Hold the lock that a merge takes first."""
    with engine().connect() as connection:
        connection.execute(
            sa.text("SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext(:s))"), {"s": stream}
        )
        yield
        connection.rollback()


def _waiting_backend() -> int | None:
    rows = evidence.query(_WAITING)
    return rows[0]["pid"] if rows else None


def _postmaster(services) -> psutil.Process:
    return psutil.Process(services.supervisor.state("postgres")["pid"])


def _kill(process: psutil.Process) -> bool:
    """Kill a process; returns whether it was still there."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _is_up() -> bool:
    parsed = sa.make_url(settings().require_database_url())
    try:
        psycopg2.connect(
            host=parsed.host, port=parsed.port, user=parsed.username, password=parsed.password,
            dbname=parsed.database, connect_timeout=2,
        ).close()  # fmt: skip
    except psycopg2.OperationalError:
        return False
    return True


@pytest.mark.parametrize("victim", ["the merging session", "the whole server"])
def test_postgres_is_killed_during_a_merge(outcome, services, victim):
    result = outcome(f"Postgres: {victim} killed during a merge")
    moments = random.Random(7)
    for trial in range(10):
        # A merge is short, and may end before it is struck: then once more.
        if trial >= trials(10) and result.struck:
            break
        tonight = night.make()
        process = Scoring(tonight)
        with _merges_wait(tonight.stream):
            process.go()
            evidence.wait_for(_waiting_backend)
            merging = psutil.Process(_waiting_backend())
        # The merge has its lock now, and writes.
        time.sleep(moments.uniform(0, 0.02))
        struck = process.is_running()
        if victim == "the merging session":
            # When one session is killed, Postgres ends all sessions and recovers from its log.
            struck &= _kill(merging)
        else:
            _kill(_postmaster(services))
        with result.recovery():
            try:
                process.finish()
            except ScoringFailedError:
                evidence.wait_for(_is_up)
                steps.score_night(tonight.stream, tonight.date.isoformat())
        result.add(evidence.of_complete_night(tonight), struck=struck)
    assert result.is_clean
