"""Airflow's scheduler is killed while its tasks score a night."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ml.stack.airflow_client import AirflowApi, DagRun
from ml.stack.local import LocalStack
from tests.faults.conftest import add_outcome, trials
from tests.support import evidence, night, stacks

_STREAM, _MODEL = "spill", "spill-anomaly"
_DAG = f"score_{_STREAM}"


@pytest.fixture
def with_airflow(airflow_home, monkeypatch) -> Iterator[LocalStack]:
    """The stack of tests/e2e, used instead of that of the other faults; stopped at the end."""
    stack = LocalStack(airflow_home)
    with monkeypatch.context() as patch:
        patch.setenv("NIGHTSCORE_HOME", str(airflow_home))
        patch.setenv("NIGHTSCORE_CONFIG", str(airflow_home.parent / "nightscore.yaml"))
        stacks.forget_connections()
        try:
            yield stack
        finally:
            stack.down()
            assert not _processes_in(airflow_home)
    stacks.forget_connections()


def test_the_scheduler_is_killed_in_mid_run(with_airflow):
    result = add_outcome("Airflow's scheduler killed (kill -9)")
    workers: list[psutil.Process] = []
    with AirflowApi() as api:
        api.unpause(_DAG)
        for _ in range(trials(2)):
            tonight = night.make(images=160, stream=_STREAM)
            run = api.trigger(_DAG, {"night": tonight.date.isoformat()})
            evidence.wait_for(lambda night=tonight: _is_scoring(night), timeout_s=240)
            scheduler = psutil.Process(with_airflow.supervisor.state("airflow-scheduler")["pid"])
            workers += scheduler.children(recursive=True)
            scheduler.kill()
            struck = not _is_done(tonight)
            with result.recovery():
                states = api.wait([run], timeout_s=900)
            assert states == {DagRun(run.dag_id, run.run_id): "success"}
            result.add(evidence.of_complete_night(tonight, (_MODEL,)), struck=struck)
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
