"""Who may see which page: Airflow's API server with the FAB auth manager, its users and roles.

Airflow's simple auth manager ignores which DAG is asked for. FAB is laid over .venv in an environment
of its own, `.venv-fab`, which `make test` makes.
"""

import json
import os
import subprocess
import uuid
from datetime import date

import pytest

from ml.database.connection import transaction
from ml.database.tables import ScoringRun
from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support.stacks import REPOSITORY

NIGHT = date(2026, 1, 1)
PAGES = "/nightscore/reports"
PYTHON = REPOSITORY / ".venv-fab" / "bin" / "python"


def _add_run(stream: str, bucket: str) -> uuid.UUID:
    """A run with a report that names its stream."""
    run_id, uri = uuid.uuid4(), f"{bucket}/reports/{stream}.html"
    object_store().put(uri, f"report of {stream}".encode(), "text/html")
    with transaction() as session:
        session.add(
            ScoringRun(
                run_id=run_id, trigger=str(run_id), stream=stream, night=NIGHT, status="failed",
                lookback_from=NIGHT, max_rejected_share=0.5, shard_size=1, report_uri=uri,
            )
        )  # fmt: skip
    return run_id


@pytest.fixture(scope="module")
def streams(store_and_database) -> dict[str, uuid.UUID]:
    """Two streams with a run each: stream → its run."""
    mark = uuid.uuid4().hex[:8]
    bucket = f"s3://nightscore/access-{mark}"
    return {name: _add_run(name, bucket) for name in (f"a{mark}", f"b{mark}")}


@pytest.fixture(scope="module")
def answers(streams, tmp_path_factory) -> dict:
    """User → path → status and text, from an API server that has the analyst's login only."""
    if not PYTHON.exists():
        pytest.fail("`make .venv-fab/.installed` makes the environment of this test")
    home = tmp_path_factory.mktemp("fab")
    login = settings()
    analyst = login.require_analyst_url().replace("postgresql+psycopg2", "postgres")
    s3 = {
        "conn_type": "aws",
        "login": login.s3_access_key,
        "password": login.s3_secret_key.get_secret_value(),
        "extra": json.dumps({"endpoint_url": login.s3_endpoint, "region_name": "us-east-1"}),
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "NIGHTSCORE_HOME": str(home),
        "AIRFLOW_CONN_NIGHTSCORE_ANALYST": f"{analyst}?application_name=pages",
        "S3_CONNECTION": json.dumps(s3),
    }
    first, _ = streams
    paths = [
        f"{PAGES}/",
        *(f"{PAGES}/{run_id}" for run_id in (*streams.values(), uuid.UUID(int=0))),
    ]
    done = subprocess.run(
        [PYTHON, "-m", "tests.support.fab_pages", first, *paths],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_administrator_sees_every_stream(answers, streams):
    for stream, run_id in streams.items():
        assert stream in answers["admin"][f"{PAGES}/"][1]
        assert answers["admin"][f"{PAGES}/{run_id}"] == [200, f"report of {stream}"]


def test_a_reader_of_one_dag_sees_its_stream_alone(answers, streams):
    seen = answers["reader"]
    (allowed, allowed_run), (other, _) = streams.items()
    assert seen[f"{PAGES}/"][0] == 200
    assert allowed in seen[f"{PAGES}/"][1]
    assert other not in seen[f"{PAGES}/"][1]
    assert seen[f"{PAGES}/{allowed_run}"] == [200, f"report of {allowed}"]


def test_another_stream_s_report_is_answered_as_one_that_does_not_exist(answers, streams):
    other, none = list(streams.values())[1], uuid.UUID(int=0)
    status, text = answers["reader"][f"{PAGES}/{other}"]
    assert status == 404
    assert [status, text.replace(str(other), str(none))] == answers["reader"][f"{PAGES}/{none}"]


def test_a_user_without_access_sees_no_stream(answers, streams):
    status, text = answers["nobody"][f"{PAGES}/"]
    assert status == 200
    assert not any(stream in text for stream in streams)
    for run_id in streams.values():
        assert answers["nobody"][f"{PAGES}/{run_id}"][0] == 404


def test_a_stranger_is_sent_to_the_login(answers):
    for path, (status, text) in answers["stranger"].items():
        assert status == 307
        assert text.startswith(f"/api/v2/auth/login?next=%2F{path.strip('/').replace('/', '%2F')}")
