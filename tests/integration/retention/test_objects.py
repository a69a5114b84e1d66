"""Heat maps and reports of old nights go, from the real S3 server; those of others stay."""

from datetime import date, timedelta
from uuid import uuid4

import pytest

from ml.config.retention import Retention, StreamRetention
from ml.errors import ServiceError
from ml.report import nightly
from ml.retention import objects, prune
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support import expiry
from tests.support.proxy import Fault, HttpRequest, Proxy

TODAY = date(2026, 6, 1)


def _night(days_ago: int) -> date:
    return TODAY - timedelta(days=days_ago)


def _put(uri: str, count: int = 1) -> list[str]:
    uris = [f"{uri}/{number}.jpg" for number in range(count)]
    for each in uris:
        object_store().put(each, b"12345")
    return uris


def _all(storage: str) -> set[str]:
    return {info.uri for page in object_store().list_pages(storage) for info in page}


def _delete_all(policy: Policy) -> None:
    for candidate in objects.candidates(policy, TODAY):
        objects.delete(candidate, policy, TODAY)


def test_what_has_passed_its_stream_s_limit_goes_and_all_else_stays(storage):
    policy = Policy(
        Retention(heatmaps=10),
        {"short": StreamRetention(heatmaps=3, reports=3), "kept": StreamRetention()},
    )
    going = {
        *_put(f"{storage}/heatmaps/short/dt={_night(4)}/moulds/1", 3),
        *_put(f"{storage}/reports/short/dt={_night(4)}"),
        *_put(f"{storage}/heatmaps/unnamed/dt={_night(11)}/moulds/1"),
    }
    staying = {
        *_put(f"{storage}/heatmaps/short/dt={_night(3)}/moulds/1"),
        *_put(f"{storage}/reports/short/dt={_night(3)}"),
        *_put(f"{storage}/heatmaps/kept/dt={_night(400)}/moulds/1"),
        *_put(f"{storage}/heatmaps/unnamed/dt={_night(10)}/moulds/1"),
        *_put(f"{storage}/reports/unnamed/dt={_night(400)}"),
        # What is not ours, or not a night's.
        *_put(f"{storage}/heatmaps/short/dt=2020-13-01"),
        *_put(f"{storage}/heatmaps/short/dt=2020-01-01-copy"),
        *_put(f"{storage}/heatmaps/short/mine"),
        *_put(f"{storage}/datasets/short/dt=2020-01-01"),
    }
    assert _all(storage) == going | staying
    candidates = list(objects.candidates(policy, TODAY))
    assert {(c.kind, c.stream, c.night, c.items, c.bytes) for c in candidates} == {
        ("heatmaps", "short", _night(4), 3, 15),
        ("reports", "short", _night(4), 1, 5),
        ("heatmaps", "unnamed", _night(11), 1, 5),
    }
    assert _all(storage) == going | staying
    _delete_all(policy)
    assert _all(storage) == staying
    # Again, as a retried task does.
    for candidate in candidates:
        objects.delete(candidate, policy, TODAY)
    assert _all(storage) == staying


def test_without_a_limit_nothing_is_even_listed(storage, at_endpoint):
    at_endpoint("http://127.0.0.1:1")
    assert list(objects.candidates(Policy(Retention(snapshots=1, versions=1)), TODAY)) == []


def test_a_night_that_an_open_run_reaches_stays(storage):
    stream = f"open-{uuid4().hex[:8]}"
    policy = Policy(Retention(heatmaps=3))
    reached = _put(f"{storage}/heatmaps/{stream}/dt={_night(11)}/moulds/1")
    gone = _put(f"{storage}/heatmaps/{stream}/dt={_night(13)}/moulds/1")
    planned = {c.night: c for c in objects.candidates(policy, TODAY)}
    assert set(planned) == {_night(11), _night(13)}
    expiry.scoring_run(stream, _night(10), "open", lookback=2)
    assert {c.night for c in objects.candidates(policy, TODAY)} == {_night(13)}
    with pytest.raises(StillNeededError):
        objects.delete(planned[_night(11)], policy, TODAY)
    objects.delete(planned[_night(13)], policy, TODAY)
    assert _all(storage) == set(reached) and gone


def test_an_interrupted_deletion_is_finished_by_the_next_one(storage, at_endpoint):
    policy = Policy(Retention(reports=3))
    folder = f"{storage}/reports/line/dt={_night(5)}"
    _put(folder, 1005)
    (candidate,) = objects.candidates(policy, TODAY)
    assert candidate.items == 1005
    deletions: list[str] = []

    def fail_after_the_first(request: HttpRequest) -> Fault | None:
        if request.method == "POST":
            deletions.append(request.path)
        return Fault(status=403) if len(deletions) > 1 else None

    progress: list[int] = []
    original = settings().s3_endpoint
    with Proxy(original, fail_after_the_first) as proxy:
        at_endpoint(proxy.url)
        with pytest.raises(ServiceError):
            objects.delete(candidate, policy, TODAY, progress.append)
    at_endpoint(original)
    assert progress == [1000]
    assert len(_all(folder)) == 5
    objects.delete(candidate, policy, TODAY, progress.append)
    assert progress == [1000, 5]
    assert _all(storage) == set()


def test_a_report_that_was_deleted_is_named_as_such_with_the_date(storage):
    stream, night = f"told-{uuid4().hex[:8]}", _night(9)
    folder = f"{storage}/reports/{stream}/dt={night}"
    run_id = expiry.scoring_run(stream, night, report_uri=f"{folder}/1.html")
    with pytest.raises(FileNotFoundError) as never_written:
        nightly.read(run_id)
    assert not isinstance(never_written.value, nightly.DeletedReportError)
    object_store().put(f"{folder}/1.html", b"<html>")
    assert nightly.read(run_id) == "<html>"
    planned = prune.plan(Policy(Retention(reports=3)), TODAY, stream=stream, areas=["objects"])
    (outcome,) = prune.delete_all(planned, "test")
    assert (outcome.state, outcome.candidate.items) == ("deleted", 1)
    with pytest.raises(nightly.DeletedReportError, match=rf"was deleted on {expiry.today()}"):
        nightly.read(run_id)
    with pytest.raises(FileNotFoundError, match="has no report"):
        nightly.read(run_id, lambda stream: False)


def test_a_candidate_is_what_its_name_says(storage):
    policy = Policy(Retention(reports=3))
    kept = _put(f"{storage}/reports/line/dt={_night(5)}")
    (candidate,) = objects.candidates(policy, TODAY)
    for wrong in (
        {"name": storage},
        {"name": f"{storage}/reports/line"},
        {"kind": "heatmaps"},
        {"night": _night(6)},
        {"stream": None},
    ):
        with pytest.raises(ValueError):
            objects.delete(type(candidate)(**{**vars(candidate), **wrong}), policy, TODAY)
    assert _all(storage) == set(kept)
