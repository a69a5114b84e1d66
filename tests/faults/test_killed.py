"""kill -9 of the scoring process at random moments, then a second run."""

import random
import time

from ml.scoring import steps
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import Scoring


def _undisturbed_s() -> float:
    first = night.make()  # converts the programs, which later nights find done
    steps.score_night(first.stream, first.date.isoformat())
    process = Scoring(night.make())
    process.go()
    started = time.monotonic()
    process.finish()
    return time.monotonic() - started


def test_kill_9_of_the_scoring_process_at_random_moments(outcome):
    found = outcome("scoring process killed (kill -9)")
    whole_s = _undisturbed_s()
    moments = random.Random(20261126)
    for _ in range(trials(50)):
        tonight = night.make()
        process = Scoring(tonight)
        process.go()
        time.sleep(moments.uniform(0, whole_s))
        struck = process.is_running()
        process.kill()
        found.add(evidence.of_night(tonight), counts=False)
        with found.recovery():
            steps.score_night(tonight.stream, tonight.date.isoformat())
        found.add(evidence.of_complete_night(tonight), struck=struck)
        if struck:
            found.add(_run_is_not_left_open(tonight), counts=False)
    assert found.is_clean


def _run_is_not_left_open(tonight: night.Night) -> evidence.Evidence:
    rows = evidence.query(
        "SELECT run_id FROM reporting.nightly_summary WHERE stream = :s AND night = :n"
        " AND status = 'open'",
        s=tonight.stream,
        n=tonight.date,
    )
    return evidence.Evidence(inconsistent=[f"run {row['run_id']} is left open" for row in rows])
