"""kill -9 of a scoring process at random moments, then a second run, or a retry of its task."""

import random
import time

from ml.scoring import steps
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.process import GroupScoring, Scoring


def _undisturbed_s() -> float:
    first = night.make()  # fetches the programs, which later nights find cached
    steps.score_night(first.stream, first.date.isoformat())
    process = Scoring(night.make())
    process.go()
    started = time.monotonic()
    process.finish()
    return time.monotonic() - started


def test_kill_9_of_the_scoring_process_at_random_moments(outcome):
    result = outcome("scoring process killed (kill -9)")
    whole_s = _undisturbed_s()
    moments = random.Random(20261126)
    for _ in range(trials(50)):
        tonight = night.make()
        process = Scoring(tonight)
        process.go()
        time.sleep(moments.uniform(0, whole_s))
        struck = process.is_running()
        process.kill()
        result.add(evidence.of_night(tonight), counts=False)
        with result.recovery():
            steps.score_night(tonight.stream, tonight.date.isoformat())
        result.add(evidence.of_complete_night(tonight), struck=struck)
        if struck:
            result.add(_run_is_not_left_open(tonight), counts=False)
    assert result.is_clean


def _planned(tonight: night.Night) -> tuple[str, list[int]]:
    """A run of the night with all its shards in one group."""
    run_id = steps.open_run(tonight.stream, tonight.date.isoformat())
    steps.discover(run_id)
    (group,) = steps.plan_groups(run_id)
    return run_id, group


def _undisturbed_group_s() -> float:
    steps.score_shards(*_planned(night.make()))  # fetches the programs
    process = GroupScoring(*_planned(night.make(images=160)))
    process.go()
    started = time.monotonic()
    process.finish()
    return time.monotonic() - started


def test_kill_9_of_a_process_with_a_group_of_shards_at_random_moments(outcome):
    """As Airflow retries the task: the same group again, in another process."""
    result = outcome("process with a group of shards killed (kill -9)")
    whole_s = _undisturbed_group_s()
    moments = random.Random(20261127)
    for _ in range(trials(25)):
        tonight = night.make(images=160)
        run_id, group = _planned(tonight)
        assert len(group) == 4
        process = GroupScoring(run_id, group)
        process.go()
        time.sleep(moments.uniform(0, whole_s))
        struck = process.is_running()
        process.kill()
        result.add(evidence.of_night(tonight), counts=False)
        before = _finished_shards(run_id)
        with result.recovery():
            steps.score_shards(run_id, group)
            steps.reconcile(run_id)
            steps.report(run_id)
        result.add(evidence.of_complete_night(tonight), struck=struck)
        assert [row for row in _finished_shards(run_id) if row in before] == before
    assert result.is_clean


def _finished_shards(run_id: str) -> list[dict]:
    return evidence.query(
        "SELECT * FROM nightscore.shard WHERE run_id = :r AND finished_at IS NOT NULL"
        " ORDER BY number",
        r=run_id,
    )


def _run_is_not_left_open(tonight: night.Night) -> evidence.Evidence:
    rows = evidence.query(
        "SELECT run_id FROM reporting.nightly_summary WHERE stream = :s AND night = :n"
        " AND status = 'open'",
        s=tonight.stream,
        n=tonight.date,
    )
    return evidence.Evidence(inconsistent=[f"run {row['run_id']} is left open" for row in rows])
