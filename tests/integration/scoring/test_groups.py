"""Groups of shards: one process scores them, and a shard stays what a failure loses."""

import json
import os
import signal
import subprocess
import sys
import threading
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from ml.config.loading import configuration
from ml.database.connection import transaction
from ml.errors import DataError, RunFailedError, ServiceError
from ml.registry import programs
from ml.scoring import SHARD_ATTEMPTS, steps
from ml.scoring.results import Results
from ml.scoring.shards import score_shards
from ml.storage.object_store import object_store
from tests.support import synthetic_images

REPOSITORY = Path(__file__).parents[3]
_NIGHTS = iter(date(2026, 9, 1) + timedelta(days=10 * n) for n in range(1000))


@pytest.fixture
def opened(trained) -> str:
    """A run with 45 images in 5 shards, 0 to 4, that are not planned yet."""
    night = next(_NIGHTS)
    prefix = configuration().stream("line").prefix
    for n in range(45):
        content = synthetic_images.shade("dark" if n % 2 else "light", 20_000 + n)
        object_store().put(f"{prefix}/dt={night}/{n:03}.png", content)
    run_id = steps.open_run("line", night.isoformat())
    assert steps.discover(run_id) == 45
    return run_id


@pytest.fixture
def planned(opened) -> str:
    """The same run with its shards planned."""
    assert steps.plan_shards(opened) == [0, 1, 2, 3, 4]
    return opened


def _shards(run_id: str) -> dict[int, dict]:
    with transaction() as session:
        found = session.execute(
            sa.text("SELECT * FROM nightscore.shard WHERE run_id = :r ORDER BY number"),
            {"r": run_id},
        )
        return {row["number"]: dict(row) for row in found.mappings()}


def _stored(run_id: str) -> int:
    with transaction() as session:
        count = sa.text("SELECT count(*) FROM nightscore.prediction WHERE run_id = :r")
        return session.scalar(count, {"r": run_id})


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """The programs that are loaded during a test."""
    loads = []
    load = programs.load

    def load_and_note(model, version, device):
        loads.append(model)
        return load(model, version, device)

    monkeypatch.setattr(programs, "load", load_and_note)
    return loads


@pytest.fixture
def merges(monkeypatch) -> list[int]:
    """The shards whose results are stored during a test, in that order."""
    merges = []
    merge = Results.merge

    def merge_and_note(self, images, seconds, device):
        merges.append(self.shard)
        merge(self, images, seconds, device)

    monkeypatch.setattr(Results, "merge", merge_and_note)
    return merges


def _fail_at(monkeypatch, shards: set[int], error: BaseException) -> None:
    """Let the merge of these shards raise an error."""
    merge = Results.merge

    def merge_or_fail(self, images, seconds, device):
        if self.shard in shards:
            raise error
        merge(self, images, seconds, device)

    monkeypatch.setattr(Results, "merge", merge_or_fail)


def test_a_group_loads_the_programs_once(planned, loads, merges):
    counts = steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert counts == {"scored": 45, "rejected": 0}
    assert loads == ["shades"]
    assert merges == [0, 1, 2, 3, 4]
    rows = _shards(planned)
    assert {row["attempts"] for row in rows.values()} == {1}
    assert [row["engine_images"] for row in rows.values()] == [10, 10, 10, 10, 5]
    assert all(row["engine_seconds"] > 0 and row["finished_at"] for row in rows.values())
    assert steps.reconcile(planned)["scored"] == 45


def test_a_night_from_the_command_line_loads_the_programs_once(opened, loads):
    with transaction() as session:
        night = sa.text("SELECT night FROM nightscore.scoring_run WHERE run_id = :r")
        date_ = session.scalar(night, {"r": opened})
    assert steps.score_night("line", date_.isoformat())["scored"] == 45
    assert loads == ["shades"]


def test_a_finished_or_empty_group_loads_nothing_and_its_rows_stay(planned, loads, merges):
    steps.score_shards(planned, [0, 1, 2, 3, 4])
    before = _shards(planned)
    loads.clear()
    merges.clear()
    assert steps.score_shards(planned, [0, 1, 2, 3, 4]) == {"scored": 0, "rejected": 0}
    assert steps.score_shards(planned, []) == {"scored": 0, "rejected": 0}
    assert steps.score_shard(planned, 3) == {"scored": 0, "rejected": 0}
    assert (loads, merges) == ([], [])
    assert _shards(planned) == before


def test_a_shard_that_is_not_in_the_run_is_refused(planned):
    with pytest.raises(DataError, match="has no shard 99"):
        steps.score_shard(planned, 99)


def test_a_shard_that_fails_does_not_keep_the_others_from_being_scored(
    planned, monkeypatch, merges
):
    with monkeypatch.context() as broken:
        _fail_at(broken, {1, 3}, ServiceError("made to fail."))
        with pytest.raises(ServiceError, match=r"2 of 5 shards failed: 1, 3\. .*made to fail"):
            steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert _stored(planned) == 25
    before = _shards(planned)
    assert {n for n, row in before.items() if row["finished_at"] is None} == {1, 3}
    assert {row["error"] for row in before.values()} == {None, "made to fail"}
    merges.clear()
    # The retry scores what is not finished, and leaves the rows of the others as they are.
    assert steps.score_shards(planned, [0, 1, 2, 3, 4])["scored"] == 20
    assert merges == [1, 3]
    after = _shards(planned)
    assert [after[n] for n in (0, 2, 4)] == [before[n] for n in (0, 2, 4)]
    assert {(row["attempts"], row["error"]) for row in (after[1], after[3])} == {(2, None)}
    assert steps.reconcile(planned)["scored"] == 45


def test_an_error_that_nobody_expected_is_a_failure_of_its_shard_only(planned, monkeypatch):
    _fail_at(monkeypatch, {0}, ValueError("nobody expected it"))
    with pytest.raises(ServiceError, match=r"1 of 5 shards failed: 0. .*nobody expected it"):
        steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert _stored(planned) == 35


def test_failures_that_a_retry_cannot_help_are_a_data_error(planned):
    def refuse(versions):
        raise DataError("The program is not what was registered.")

    with pytest.raises(DataError, match=r"5 of 5 shards failed: 0, 1, 2, 3, 4\. "):
        score_shards(UUID(planned), [0, 1, 2, 3, 4], load=refuse)
    assert _stored(planned) == 0


def test_the_last_attempt_fails_the_run_which_names_the_images_and_keeps_the_others(
    planned, monkeypatch
):
    _fail_at(monkeypatch, {2}, ServiceError("made to fail."))
    for _ in range(SHARD_ATTEMPTS):
        with pytest.raises(ServiceError, match="1 of 5 shards failed: 2"):
            steps.score_shards(planned, [0, 1, 2, 3, 4])
    with pytest.raises(RunFailedError, match=r"10 of 45 images .* in shard 2") as caught:
        steps.reconcile(planned)
    assert "shard 2 failed 3 times, made to fail" in str(caught.value)
    assert "020.png" in str(caught.value)
    assert _stored(planned) == 35


def test_the_shards_with_the_fewest_attempts_come_first(planned, monkeypatch, merges):
    with monkeypatch.context() as broken:
        _fail_at(broken, {1}, KeyboardInterrupt())  # it ends the process, as a kill does
        with pytest.raises(KeyboardInterrupt):
            steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert merges == [0]
    assert [row["attempts"] for row in _shards(planned).values()] == [1, 1, 0, 0, 0]
    merges.clear()
    steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert merges == [2, 3, 4, 1]
    assert steps.reconcile(planned)["scored"] == 45


_KILLED = """
import os, signal, sys
from ml.scoring import steps
from ml.scoring.results import Results
merge = Results.merge
def merge_or_die(self, images, seconds, device):
    if str(self.shard) in sys.argv[2].split(","):
        os.kill(os.getpid(), signal.SIGKILL)
    merge(self, images, seconds, device)
Results.merge = merge_or_die
steps.score_shards(sys.argv[1], [0, 1, 2, 3, 4])
"""


def _is_killed(run_id: str, shards: str) -> bool:
    """Score the group in a process that these shards kill, as too little memory does."""
    command = [sys.executable, "-c", _KILLED, run_id, shards]
    code = subprocess.run(command, cwd=REPOSITORY, env=os.environ).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_shards_that_kill_the_process_do_not_keep_the_others_from_being_scored(planned):
    unfinished = []
    for _ in range(SHARD_ATTEMPTS):
        assert _is_killed(planned, "0,2")
        rows = _shards(planned)
        unfinished.append([n for n, row in rows.items() if row["finished_at"] is None])
        assert _stored(planned) == sum(row["images"] for row in rows.values() if row["finished_at"])
    assert unfinished == [[0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 2]]
    with pytest.raises(RunFailedError, match=r"20 of 45 images .* in shard 0, 2"):
        steps.reconcile(planned)
    # A cleared task scores what is left.
    assert not _is_killed(planned, "none")
    assert steps.reconcile(planned)["scored"] == 45


def test_two_processes_with_the_same_group_store_every_image_once(planned):
    """As when Airflow starts a task again because it has lost sight of it."""
    errors: list[BaseException] = []

    def score() -> None:
        try:
            steps.score_shards(planned, [0, 1, 2, 3, 4])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=score) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _stored(planned) == 45
    assert all(row["finished_at"] for row in _shards(planned).values())
    assert steps.reconcile(planned)["scored"] == 45


def test_a_second_process_begins_with_the_shards_that_the_first_has_not_started(
    planned, monkeypatch, merges
):
    merge = Results.merge
    is_first = True

    def merge_after_a_second_process(self, images, seconds, device):
        nonlocal is_first
        if is_first:
            is_first = False
            steps.score_shards(planned, [0, 1, 2, 3, 4])
        merge(self, images, seconds, device)

    monkeypatch.setattr(Results, "merge", merge_after_a_second_process)
    steps.score_shards(planned, [0, 1, 2, 3, 4])
    assert merges == [1, 2, 3, 4, 0, 0]  # the second takes shard 0 last, and the first ends with it
    assert [row["attempts"] for row in _shards(planned).values()] == [2, 1, 1, 1, 1]
    assert steps.reconcile(planned)["scored"] == 45


def test_a_shard_that_another_process_has_finished_meanwhile_keeps_its_row(planned, monkeypatch):
    """Two processes score it; the second one stores nothing new."""
    merge = Results.merge
    rows = []

    def merge_second(self, images, seconds, device):
        if not rows:
            monkeypatch.setattr(Results, "merge", merge)
            steps.score_shard(str(self.run_id), self.shard)
            rows.append(_shards(planned)[self.shard])
        merge(self, images, seconds * 1000, device)

    monkeypatch.setattr(Results, "merge", merge_second)
    steps.score_shard(planned, 4)
    assert _shards(planned)[4] == rows[0]
    assert _stored(planned) == 5


def test_the_plan_has_groups_of_the_size_in_the_configuration(opened, tmp_path, monkeypatch):
    assert steps.plan_groups(opened) == [[0, 1, 2, 3, 4]]
    text = Path(os.environ["NIGHTSCORE_CONFIG"]).read_text()
    for size, groups in (
        (1, [[0], [1], [2], [3], [4]]),
        (2, [[0], [1, 2], [3, 4]]),
        (5, [[0, 1, 2, 3, 4]]),
    ):
        path = tmp_path / f"{size}.yaml"
        path.write_text(
            text.replace("shard_size: 10\n", f"shard_size: 10\n    shards_per_task: {size}\n")
        )
        monkeypatch.setenv("NIGHTSCORE_CONFIG", str(path))
        assert steps.plan_groups(opened) == groups
    # Planned again later, the plan has what is left.
    steps.score_shards(opened, [1, 2, 3])
    assert steps.plan_groups(opened) == [[0, 4]]
    steps.score_shards(opened, [0])
    assert steps.plan_groups(opened) == [[4]]
    steps.score_shards(opened, [4])
    assert steps.plan_groups(opened) == []


def _step(*arguments: str):
    command = [Path(sys.executable).parent / "nightscore", "step", *arguments]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_command_line_has_the_steps_of_groups_and_of_single_shards(opened):
    assert _step("plan-shards", opened) == [0, 1, 2, 3, 4]
    assert _step("plan-groups", opened) == [[0, 1, 2, 3, 4]]
    assert _step("score-shard", opened, "2") == {"scored": 10, "rejected": 0}
    assert _step("score-shards", opened, "0", "1", "2", "3", "4") == {"scored": 35, "rejected": 0}
    assert _step("plan-groups", opened) == []
