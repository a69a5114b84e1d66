"""Whatever a model went through, no version and no run is deleted that something needs."""

from datetime import UTC, date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ml.registry.deletion import StoredRun, StoredVersion
from ml.retention.model_history import ModelHistory, RecordedPromotion, RecordedVersion

TODAY = date(2026, 6, 1)
_MOST_DAYS = 40


def _at(days_ago: int, hour: int) -> datetime:
    return datetime(TODAY.year, TODAY.month, TODAY.day, hour, tzinfo=UTC) - timedelta(days=days_ago)


_times = st.builds(_at, st.integers(0, _MOST_DAYS), st.integers(0, 23))
_numbers = st.integers(1, 8)
_limits = st.integers(1, _MOST_DAYS)


@st.composite
def _runs(draw) -> list[StoredRun]:
    ids = draw(st.lists(_numbers, unique=True))
    return [
        StoredRun(
            f"run-{number}",
            active=draw(st.booleans()),
            last_used=draw(_times),
            repeats=draw(st.sampled_from(["", *(f"run-{other}" for other in range(1, 9))])),
            is_ours=draw(st.booleans()),
        )
        for number in ids
    ]


@st.composite
def histories(draw) -> ModelHistory:
    return ModelHistory(
        "shades",
        stored=[
            StoredVersion(number, f"run-{draw(_numbers)}", draw(_times), draw(st.booleans()))
            for number in draw(st.lists(_numbers, unique=True))
        ],
        recorded=[
            RecordedVersion(number, f"run-{draw(_numbers)}", draw(_times), draw(st.none() | _times))
            for number in draw(st.lists(_numbers, unique=True))
        ],
        aliased=draw(st.frozensets(_numbers, max_size=3)),
        promotions=[
            RecordedPromotion(
                draw(_numbers), draw(st.none() | _numbers), draw(_times), draw(st.booleans())
            )
            for _ in range(draw(st.integers(0, 4)))
        ],
        pinned=draw(st.frozensets(_numbers, max_size=3)),
        runs=draw(_runs()),
    )


def _first_day(limit: int) -> date:
    return TODAY - timedelta(days=limit)


@given(histories(), _limits)
def test_no_version_goes_that_something_needs(history, limit):
    unused = history.unused_versions(_first_day(limit))
    for entry in unused:
        assert entry.is_ours
        assert entry.version not in history.aliased
        assert entry.version not in history.pinned
        assert entry.version < max(
            other.version
            for other in (*history.stored, *history.recorded)
            if getattr(other, "deleted_at", None) is None
        )
        for promotion in history.promotions:
            if entry.version in (promotion.version, promotion.replaced):
                assert not promotion.is_pending
                assert TODAY - promotion.promoted_at.date() > timedelta(days=limit)
        begun = any(
            row.version == entry.version and row.deleted_at is not None for row in history.recorded
        )
        assert begun or TODAY - entry.registered_at.date() > timedelta(days=limit)


@given(histories(), _limits)
def test_no_run_goes_that_something_needs(history, limit):
    for run in history.unused_runs(_first_day(limit)):
        assert run.is_ours and not run.active
        assert TODAY - run.last_used.date() > timedelta(days=limit)
        assert run.run_id not in {entry.run_id for entry in history.stored}
        assert run.run_id not in {row.run_id for row in history.recorded if row.deleted_at is None}
        for other in history.runs:
            young = other.active or TODAY - other.last_used.date() <= timedelta(days=limit)
            assert not (young and other.repeats == run.run_id)


@given(histories(), _limits, _limits)
def test_a_longer_limit_deletes_no_more(history, one, other):
    short, long = sorted((one, other))
    fewer = {entry.version for entry in history.unused_versions(_first_day(long))}
    assert fewer <= {entry.version for entry in history.unused_versions(_first_day(short))}
    runs = {run.run_id for run in history.unused_runs(_first_day(long))}
    assert runs <= {run.run_id for run in history.unused_runs(_first_day(short))}


@given(histories(), _limits)
def test_a_deletion_that_was_begun_is_finished_and_makes_no_other_version_unused(history, limit):
    first = _first_day(limit)
    before = history.unused_versions(first)
    if not before:
        return
    gone = before[0].version
    marked = [
        RecordedVersion(row.version, row.run_id, row.registered_at, _at(0, 0))
        if row.version == gone
        else row
        for row in history.recorded
    ]
    begun = ModelHistory(**{**vars(history), "recorded": marked})
    assert before == begun.unused_versions(first)
    after = ModelHistory(
        **{**vars(begun), "stored": [e for e in begun.stored if e.version != gone]}
    )
    assert before[1:] == after.unused_versions(first)


def _simple(versions: int, **changes) -> ModelHistory:
    fields = {
        "stored": [StoredVersion(n, f"run-{n}", _at(100, 0), True) for n in range(1, versions + 1)],
        "recorded": [
            RecordedVersion(n, f"run-{n}", _at(100, 0), None) for n in range(1, versions + 1)
        ],
        "aliased": frozenset(),
        "promotions": [],
        "pinned": frozenset(),
        "runs": [
            StoredRun(f"run-{n}", active=False, last_used=_at(100, 0))
            for n in range(1, versions + 2)
        ],
    }
    return ModelHistory("shades", **(fields | changes))


def test_what_nothing_needs_goes():
    history = _simple(5, aliased=frozenset({2}), pinned=frozenset({3}))
    assert [entry.version for entry in history.unused_versions(_first_day(30))] == [1, 4]
    # Of the others, the run that no version came from.
    assert [run.run_id for run in history.unused_runs(_first_day(30))] == ["run-6"]


def test_the_limit_counts_from_the_last_promotion():
    recent = [RecordedPromotion(2, 1, _at(10, 0), is_pending=False)]
    unused = _simple(3, promotions=recent).unused_versions(_first_day(30))
    assert unused == []
    unused = _simple(3, promotions=recent).unused_versions(_first_day(5))
    assert [entry.version for entry in unused] == [1, 2]
