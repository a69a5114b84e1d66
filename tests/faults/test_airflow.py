"""Airflow's scheduler is killed while its tasks score a night."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ml.registry import client
from ml.stack.airflow_client import AirflowApi, DagRun
from ml.stack.local import LocalStack
from tests.faults.conftest import trials
from tests.support import evidence, night, stacks

_DAG = f"score_{night.STREAM}"
_PROMPT = {
    "SCHEDULER_HEARTBEAT_SEC": "2",
    "SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "ORPHANED_TASKS_CHECK_INTERVAL": "5",
}


@pytest.fixture
def with_airflow(trained, shared_folder, tmp_path, monkeypatch) -> Iterator[LocalStack]:
    """A complete stack with both models trained, used instead of the stack of the other tests."""
    home = tmp_path / ".nightscore"
    stacks.copy_of_trained(shared_folder, home)
    stack = LocalStack(home)
    with monkeypatch.context() as patch:
        patch.setenv("NIGHTSCORE_HOME", str(home))
        # Within seconds, Airflow notices that a scheduler was killed and looks for its tasks.
        for name, seconds in _PROMPT.items():
            patch.setenv(f"AIRFLOW__SCHEDULER__{name}", seconds)
        stacks.forget_connections()
        try:
            stack.up(ports=stacks.ports())
            yield stack
        finally:
            stack.down()
            assert not _processes_in(home)
            shutil.rmtree(home, ignore_errors=True)
    stacks.forget_connections()
    client.mlflow_client()


def test_the_scheduler_is_killed_in_mid_run(outcome, with_airflow):
    result = outcome("Airflow's scheduler killed (kill -9)")
    workers: list[psutil.Process] = []
    with AirflowApi() as api:
        api.unpause(_DAG)
        for _ in range(trials(2)):
            tonight = night.make(images=160)
            run = api.trigger(_DAG, {"night": tonight.date.isoformat()})
            evidence.wait_for(lambda night=tonight: _is_scoring(night), timeout_s=240)
            scheduler = psutil.Process(with_airflow.supervisor.state("airflow-scheduler")["pid"])
            workers += scheduler.children(recursive=True)
            scheduler.kill()
            struck = not _is_done(tonight)
            with result.recovery():
                states = api.wait([run], timeout_s=900)
            assert states == {DagRun(run.dag_id, run.run_id): "success"}
            result.add(evidence.of_complete_night(tonight), struck=struck)
    assert result.is_clean
    assert workers
    with_airflow.down()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _processes_in(folder: Path) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                processes.append(process)
    return [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]


def _shards(tonight: night.Night) -> list[dict]:
    return evidence.query(
        "SELECT shard.started_at, shard.finished_at FROM nightscore.scoring_run run"
        " JOIN nightscore.shard USING (run_id) WHERE run.stream = :s AND run.night = :n",
        s=tonight.stream,
        n=tonight.date,
    )


def _is_scoring(tonight: night.Night) -> bool:
    return any(row["started_at"] and not row["finished_at"] for row in _shards(tonight))


def _is_done(tonight: night.Night) -> bool:
    rows = _shards(tonight)
    return bool(rows) and all(row["finished_at"] for row in rows)
