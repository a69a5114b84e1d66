"""The object store stops, refuses, dawdles, cuts connections and hands out half of an object."""

import random
import threading
import time
from collections.abc import Callable

import pytest

from ml.errors import NightscoreError
from ml.scoring import steps
from ml.settings import settings
from ml.timeouts import client_limits
from tests.faults.conftest import FULL, trials
from tests.support import evidence, night
from tests.support.process import Scoring, ScoringFailedError
from tests.support.proxy import Asked, Decide, Proxy, Wrong

# What each fault costs is mostly waiting: the suite of all tests waits less.
_STOPPED_S = 20 if FULL else 4
_SLOW_S = 2 if FULL else 0.3


def _score(tonight: night.Night) -> None:
    steps.score_night(tonight.stream, tonight.date.isoformat())


def test_the_server_is_stopped_for_a_while(outcome, services):
    found = outcome(f"object store stopped for {_STOPPED_S} s")
    for number in range(trials(3)):
        tonight = night.make(images=300)
        process = Scoring(tonight)
        process.go()
        time.sleep(0.1 + 0.2 * number)
        struck = process.is_running()
        services.supervisor.stop("s3")
        time.sleep(_STOPPED_S)
        services.supervisor.launch("s3")
        with found.recovery():
            try:
                process.finish()
            except ScoringFailedError:
                _score_when_it_is_back(tonight)
        found.add(evidence.of_complete_night(tonight), struck=struck)
    assert found.is_clean


def _score_when_it_is_back(tonight: night.Night) -> None:
    evidence.wait_for(lambda: evidence.answers(settings().s3_endpoint))
    _score(tonight)


def _some(share: float, wrong: Wrong) -> Decide:
    """Spoils a share of all requests."""
    drawn = random.Random(1)
    lock = threading.Lock()

    def decide(asked: Asked) -> Wrong | None:
        with lock:
            return wrong if drawn.random() < share else None

    return decide


def _images(wrong: Wrong, share: float = 0.3) -> Decide:
    """Spoils a share of the images that are read."""
    some = _some(share, wrong)
    return lambda asked: some(asked) if asked.method == "GET" and ".png" in asked.path else None


_ANSWERS: dict[str, Callable[[], Decide]] = {
    "answers 503 to a third": lambda: _some(0.3, Wrong(status=503)),
    "answers 500 to a third": lambda: _some(0.3, Wrong(status=500)),
    f"takes {_SLOW_S} s a request": lambda: _some(1, Wrong(wait_s=_SLOW_S)),
    "cuts a third in mid-body": lambda: _images(Wrong(cut=True)),
    "shortens a third, with a length that fits": lambda: _images(Wrong(shortened=True)),
}


@pytest.mark.parametrize("fault", _ANSWERS)
def test_wrong_answers(outcome, at_endpoint, fault):
    found = outcome(f"object store {fault}")
    for _ in range(trials(3)):
        tonight = night.make(images=30 if "takes" in fault else 100)
        with Proxy(settings().s3_endpoint, _ANSWERS[fault]()) as proxy:
            at_endpoint(proxy.url)
            with found.recovery():
                _score(tonight)
            at_endpoint(proxy.upstream)
        found.add(evidence.of_complete_night(tonight), struck=proxy.spoilt > 0)
    assert found.is_clean


@pytest.fixture
def impatient(monkeypatch):
    """What does not pass is given up after a second."""
    monkeypatch.setenv("NIGHTSCORE_RETRY_FOR_S", "1")
    client_limits.cache_clear()
    yield
    monkeypatch.undo()
    client_limits.cache_clear()


def test_an_object_that_always_comes_short_fails_the_run_and_is_not_rejected(
    outcome, at_endpoint, impatient
):
    """The image is whole; it is the store that is not. Nothing must be said of the image."""
    found = outcome("object store always shortens one object")
    for _ in range(trials(2)):
        tonight = night.make()
        bad = sorted(tonight.uris - tonight.broken)[5]
        name = bad.rsplit("/", 1)[1]

        def decide(asked: Asked, name: str = name) -> Wrong | None:
            short = asked.method == "GET" and f"/{name}" in asked.path
            return Wrong(shortened=True) if short else None

        with Proxy(settings().s3_endpoint, decide) as proxy:
            at_endpoint(proxy.url)
            with pytest.raises(NightscoreError, match=name):
                _score(tonight)
            at_endpoint(proxy.upstream)
        found.add(evidence.of_night(tonight), counts=False)
        assert evidence.missing(tonight) >= {bad}
        with found.recovery():
            _score(tonight)
        found.add(evidence.of_complete_night(tonight), struck=proxy.spoilt > 0)
        assert evidence.missing(tonight) == set()
    assert found.is_clean
