"""Nights in Postgres that pass their limits: what goes, what stays, whoever interrupts."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ml.config.retention import Retention, StreamRetention
from ml.database.connection import engine, engine_for, maintainer_engine
from ml.database.tables import Maintenance
from ml.errors import ConfigurationError, ServiceError
from ml.retention import partitions, prune, session, upcoming
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.settings import settings
from tests.support import kept_nights

FOR_EVER = Retention()
# Each test has years of its own, and leaves nothing there.
_YEARS = iter(range(1900, 1990, 4))


@pytest.fixture
def first(store_and_database) -> Iterator[date]:
    year = next(_YEARS)
    yield date(year, 3, 1)
    kept_nights.remove(date(year, 1, 1), date(year + 3, 1, 1))


def _policy(**limits: StreamRetention) -> Policy:
    return Policy(FOR_EVER, limits)


def _results(nights: int, manifests: int | None = None) -> StreamRetention:
    return StreamRetention(results=nights, manifests=manifests)


def _prune(policy: Policy, today: date) -> list[prune.Outcome]:
    return list(prune.delete_all(prune.plan(policy, today, areas=["database"]), "test"))


def _nights(first: date, count: int) -> list[date]:
    return [first + timedelta(days=n) for n in range(count)]


def _is_pending(partition: str) -> bool:
    query = "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = CAST(:name AS regclass)"
    with engine().connect() as connection:
        return bool(connection.scalar(sa.text(query), {"name": f"nightscore.{partition}"}))


def _records(names: set[str]) -> list[Maintenance]:
    with sa.orm.Session(maintainer_engine()) as opened:
        found = opened.scalars(sa.select(Maintenance).order_by(Maintenance.maintenance_id))
        return [row for row in found if row.name in names]


@contextmanager
def _open(statement: str) -> Iterator[None]:
    """Another session that holds what a statement took until the end."""
    with engine().connect() as connection:
        connection.exec_driver_sql(statement)
        yield
        connection.rollback()


def test_a_night_goes_when_every_stream_has_passed_its_limit(first):
    nights = _nights(first, 6)
    for night in nights:
        kept_nights.add("a", night)
        kept_nights.add("b", night)
    sums = "SELECT count(*), sum(images) FROM nightscore.rejection_sum WHERE night BETWEEN '{}' AND '{}'"
    with engine().connect() as connection:
        before = connection.exec_driver_sql(sums.format(nights[0], nights[-1])).all()
    today = nights[-1] + timedelta(days=1)
    outcomes = _prune(_policy(a=_results(2), b=_results(4)), today)
    assert {outcome.state for outcome in outcomes} == {"deleted"}
    expected = {("a", night) for night in nights[4:]} | {("b", night) for night in nights[2:]}
    left = kept_nights.left(nights[0], nights[-1])
    assert left == dict.fromkeys(kept_nights.TABLES, expected)
    assert kept_nights.partitions(nights[0], nights[1]) == set()
    with engine().connect() as connection:
        assert connection.exec_driver_sql(sums.format(nights[0], nights[-1])).all() == before
    assert _prune(_policy(a=_results(2), b=_results(4)), today) == []


def test_manifests_go_before_their_results(first):
    nights = _nights(first, 4)
    for night in nights:
        kept_nights.add("a", night)
    today = nights[-1] + timedelta(days=1)
    _prune(_policy(a=_results(4, manifests=2)), today)
    left = kept_nights.left(nights[0], nights[-1])
    assert left["manifest"] == {("a", night) for night in nights[2:]}
    assert left["image"] == left["prediction"] == {("a", night) for night in nights}


def test_without_a_limit_of_a_stream_its_night_stays(first):
    kept_nights.add("a", first)
    kept_nights.add("unknown", first)
    _prune(_policy(a=_results(1)), first + timedelta(days=400))
    assert kept_nights.left(first, first)["prediction"] == {("unknown", first)}


def test_rows_are_deleted_in_batches(first, monkeypatch):
    monkeypatch.setattr(partitions, "_BATCH", 4)
    kept_nights.add("a", first, images=11)
    kept_nights.add("b", first, images=3)
    _prune(_policy(a=_results(1)), first + timedelta(days=9))
    left = kept_nights.left(first, first)
    assert all(left[table] == {("b", first)} for table in kept_nights.TABLES)


def test_a_night_that_an_open_run_looks_at_stays(first):
    nights = _nights(first, 5)
    for night in nights[:3]:
        kept_nights.add("a", night)
    kept_nights.add("a", nights[4], images=0, status="open", lookback=3)
    today = first + timedelta(days=100)
    _prune(_policy(a=_results(1)), today)
    assert kept_nights.left(first, nights[-1])["image"] == {("a", nights[1]), ("a", nights[2])}


def test_a_run_that_opens_after_the_plan_keeps_its_nights(first):
    kept_nights.add("a", first)
    kept_nights.add("b", first)
    both = _policy(a=_results(1), b=_results(1))
    today = first + timedelta(days=100)
    for policy in (both, _policy(a=_results(1))):
        planned = list(prune.plan(policy, today, areas=["database"]))
        assert planned
        run_id = kept_nights.add(
            "a", first + timedelta(days=1), images=0, status="open", lookback=2
        )
        outcomes = list(prune.delete_all(planned, "test"))
        assert {outcome.state for outcome in outcomes} == {"kept"}
        assert len(kept_nights.left(first, first)["prediction"]) == 2
        with engine().begin() as connection:
            connection.execute(
                sa.text("UPDATE nightscore.scoring_run SET status = 'finished' WHERE run_id = :id"),
                {"id": run_id},
            )


def test_a_limit_that_a_plan_did_not_know_of_is_asked_for_again(first):
    kept_nights.add("a", first)
    today = first + timedelta(days=100)
    [manifest, results] = [
        p.candidate for p in prune.plan(_policy(a=_results(1)), today, areas=["database"])
    ]
    kept_nights.add("b", first)
    for candidate in (manifest, results):
        with pytest.raises(StillNeededError, match="of b keeps the night"):
            partitions.delete(candidate, _policy(a=_results(1)), today)


@pytest.mark.parametrize("stop_before", ["detach", "finalize", "drop"])
def test_an_interruption_at_any_point_is_finished_by_the_next_run(first, monkeypatch, stop_before):
    kept_nights.add("a", first)
    policy, today = _policy(a=_results(1)), first + timedelta(days=100)

    class Killed(BaseException):
        pass

    def stop(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if stop_before == "detach":
            patch.setattr(partitions, "_remove", stop)
        elif stop_before == "drop":
            patch.setattr(partitions, "_drop", stop)
        else:
            patch.setattr(session, "MAX_LOCK_WAIT_S", 0.05)
            patch.setattr(session, "retry_when_locked", lambda connection, work, what: work())
        if stop_before == "finalize":
            reader = f"SELECT count(*) FROM nightscore.manifest WHERE night = '{first}'"
            with _open(reader):
                outcomes = _prune(policy, today)
            assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
            assert _is_pending(f"manifest_{first:%Y%m%d}")
        else:
            with pytest.raises(Killed):
                _prune(policy, today)
    day = f"{first:%Y%m%d}"
    assert f"image_{day}" in kept_nights.partitions(first, first)
    assert {outcome.state for outcome in _prune(policy, today)} == {"deleted"}
    assert kept_nights.partitions(first, first) == set()
    assert _prune(policy, today) == []


def test_what_somebody_detached_by_hand_is_left_alone(first):
    kept_nights.add("a", first)
    with engine_for(settings().require_owner_url()).begin() as connection:
        connection.exec_driver_sql(
            f"ALTER TABLE nightscore.rejection DETACH PARTITION nightscore.rejection_{first:%Y%m%d}"
        )
    _prune(_policy(a=_results(1)), first + timedelta(days=100))
    assert kept_nights.partitions(first, first) == {f"rejection_{first:%Y%m%d}"}


def test_a_reader_and_a_writer_of_the_table_go_on_while_a_partition_waits(first):
    """A long query holds up the detachment, which lets everybody else pass."""
    kept_nights.add("a", first)
    other = first + timedelta(days=1000)
    kept_nights.add("b", other)
    policy, today = _policy(a=_results(1)), first + timedelta(days=100)
    outcomes: list[prune.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.extend(_prune(policy, today)))
    with _open("SELECT count(*) FROM nightscore.manifest"):
        thread.start()
        for n in range(1, 20):
            # A new night needs a lock on the whole table that a detachment takes, too.
            kept_nights.add("b", other + timedelta(days=n))
        assert thread.is_alive()
    thread.join(60)
    assert {outcome.state for outcome in outcomes} == {"deleted"}
    assert len(kept_nights.left(other, other + timedelta(days=30))["prediction"]) == 20


def test_each_deletion_is_recorded_and_a_failure_does_not_stop_the_others(first, monkeypatch):
    second = first + timedelta(days=1)
    kept_nights.add("a", first)
    kept_nights.add("a", second)
    policy, today = _policy(a=_results(1)), first + timedelta(days=100)
    real = partitions._remove

    def fail_once(connection, table, partition):
        if partition == f"image_{first:%Y%m%d}":
            raise ServiceError("Postgres went away.")
        real(connection, table, partition)

    with monkeypatch.context() as patch:
        patch.setattr(partitions, "_remove", fail_once)
        outcomes = _prune(policy, today)
    assert [outcome.state for outcome in outcomes] == ["deleted", "deleted", "failed", "deleted"]
    records = _records({outcome.candidate.name for outcome in outcomes})
    assert [(row.kind, row.night, row.stream, row.error) for row in records] == [
        ("manifests", first, "a", None),
        ("manifests", second, "a", None),
        ("results", first, "a", "Postgres went away."),
        ("results", second, "a", None),
    ]
    assert all(row.deleted_by == "test" and row.finished_at >= row.started_at for row in records)
    assert {outcome.state for outcome in _prune(policy, today)} == {"deleted"}


def test_two_processes_do_not_delete_at_once(store_and_database):
    with session.alone(), pytest.raises(ServiceError, match="deletes already"):
        list(prune.delete_all([], "test"))


def test_a_login_that_does_not_own_the_tables_is_told_so(store_and_database, monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_MAINTAINER_URL", settings().require_database_url())
    with pytest.raises(ConfigurationError, match=r"does not own nightscore\.image"):
        list(prune.delete_all([], "test"))


def test_partitions_are_made_ahead_and_statistics_gathered(first):
    made = upcoming.make_partitions(first, nights=3)
    assert made == _nights(first, 4)
    day = [f"{night:%Y%m%d}" for night in made]
    expected = {f"{table}_{name}" for table in ("image", "prediction", "rejection") for name in day}
    assert expected <= kept_nights.partitions(made[0], made[-1])
    upcoming.make_partitions(first, nights=3)
    with engine().connect() as connection:
        is_open = connection.scalar(
            sa.text("SELECT count(*) FROM nightscore.scoring_run WHERE status = 'open'")
        )
    assert upcoming.analyse() == (not is_open)


_LIMIT = st.one_of(st.none(), st.integers(1, 8))
_NIGHT = st.fixed_dictionaries(
    {
        "stream": st.sampled_from(["p", "q", "gone"]),
        "age": st.integers(0, 9),
        "open": st.sampled_from([False, False, False, True]),
        "lookback": st.integers(0, 3),
    }
)


@hypothesis_settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    runs=st.lists(_NIGHT, min_size=1, max_size=8),
    p=st.tuples(_LIMIT, _LIMIT),
    q=st.tuples(_LIMIT, _LIMIT),
    default=_LIMIT,
)
def test_exactly_what_has_passed_its_limit_is_deleted(store_and_database, runs, p, q, default):
    """Whatever the runs and limits are: the rows that are left are those that must stay."""
    today = date(next(_CENTURIES), 6, 15)
    streams = {name: f"{name}-{uuid.uuid4().hex[:6]}" for name in ("p", "q", "gone")}
    policy = Policy(
        Retention(results=default),
        {
            streams["p"]: StreamRetention(results=p[0], manifests=p[1]),
            streams["q"]: StreamRetention(results=q[0], manifests=q[1]),
        },
    )
    added = []
    for run in runs:
        night, stream = today - timedelta(days=run["age"]), streams[run["stream"]]
        status = "open" if run["open"] else "finished"
        kept_nights.add(stream, night, status=status, lookback=run["lookback"])
        added.append((stream, night, status == "open", run["lookback"]))
    first, last = today - timedelta(days=20), today
    before = kept_nights.left(first, last)
    outcomes = _prune(policy, today)
    after = kept_nights.left(first, last)
    kept_nights.remove(first, last)
    assert "failed" not in {outcome.state for outcome in outcomes}

    def must_go(kind: str, stream: str, night: date) -> bool:
        limits = policy.streams.get(stream, policy.default)
        own = [limits.results] if kind == "results" else [limits.results, limits.manifests]
        known = [limit for limit in own if limit is not None]
        is_held = any(
            is_open and at == stream and looked - timedelta(days=lookback) <= night <= looked
            for at, looked, is_open, lookback in added
        )
        return bool(known) and (today - night).days > min(known) and not is_held

    for table in kept_nights.TABLES:
        kind = "manifests" if table == "manifest" else "results"
        assert after[table] == {place for place in before[table] if not must_go(kind, *place)}, (
            table
        )


_CENTURIES = iter(range(1500, 1900))
