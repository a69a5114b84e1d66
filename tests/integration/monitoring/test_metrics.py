"""The metrics of a scored night, in Debian's Prometheus: its rules, and the dashboard's queries."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from ml.monitoring.collector import PostgresCollector
from ml.monitoring.metrics import METRICS
from ml.scoring.steps import open_run, score_night
from ml.settings import settings
from tests.support import night
from tests.support.debian import program
from tests.support.registered import as_owner, query

REPOSITORY = Path(__file__).parents[3]
MONITORING = REPOSITORY / "docker" / "monitoring"
STREAM = night.STREAM
# On a machine that others use as well.
PATIENCE_S = 60


@pytest.fixture(scope="module")
def scored(trained) -> dict[str, Any]:
    """A scored night with anomalies and a broken image, the newest of its stream."""
    # Tests of killed processes, which share these tables, leave runs open.
    with as_owner() as session:
        closing = "UPDATE nightscore.scoring_run SET status = 'failed' WHERE status = 'open'"
        session.execute(sa.text(closing))
    images = night.make(images=12, broken=1)
    counts = score_night(STREAM, images.date.isoformat())
    assert counts["scored"] == 11 and counts["rejected"] == 1 and counts["anomalies"] > 0
    return counts


@contextmanager
def _endpoint(**variables: str) -> Iterator[str]:
    """Run `nightscore metrics serve`; gives its address."""
    command = [
        Path(sys.executable).with_name("nightscore"),
        "metrics",
        "serve",
        "--port=0",
        "--timeout=60",
    ]

    process = subprocess.Popen(
        command, env=os.environ | variables, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        address = re.search(r"http://\S+(?=/metrics)", process.stderr.readline())
        assert address
        yield address[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stderr.close()


@pytest.fixture(scope="module")
def endpoint(scored) -> Iterator[str]:
    with _endpoint() as address:
        yield address


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return response.read().decode()


def _samples(text: str) -> dict[tuple[str, frozenset], float]:
    """Name and labels → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _of_stream(text: str, name: str, **labels: str) -> float:
    return _samples(text)[name, frozenset({"stream": STREAM, **labels}.items())]


def test_the_metrics_are_those_of_the_night(scored, endpoint):
    text = _get(f"{endpoint}/metrics")
    (run,) = query(
        "SELECT * FROM reporting.nightly_summary WHERE run_id = :id", id=scored["run_id"]
    )
    images = {
        outcome: _of_stream(text, "nightscore_run_images", outcome=outcome)
        for outcome in ("discovered", "scored", "rejected")
    }
    assert images == {name: run[name] for name in images}
    assert _of_stream(text, "nightscore_run_stored_images") == run["discovered"]
    assert _of_stream(text, "nightscore_run_anomalies") == run["anomalies"]
    assert _of_stream(text, "nightscore_night_rejected_images", reason="not_an_image") == 1
    assert _of_stream(text, "nightscore_night_rejected_images", reason="empty") == 0
    for name in ("images_per_second", "engine_images_per_second"):
        assert _of_stream(text, f"nightscore_run_{name}") == pytest.approx(run[name])
    stages = [
        _of_stream(text, "nightscore_run_stage_seconds", stage=stage)
        for stage in ("prepare", "score", "close")
    ]
    assert sum(stages) == pytest.approx(run["seconds"]) and min(stages) >= 0
    assert 0 < _of_stream(text, "nightscore_run_device_busy_ratio", device="cpu") <= 1
    finished = _of_stream(text, "nightscore_stream_last_finished_timestamp_seconds")
    assert finished == pytest.approx(run["finished_at"].timestamp())
    assert _of_stream(text, "nightscore_run_status", status="finished") == 1
    assert _of_stream(text, "nightscore_run_status", status="failed") == 0
    assert _of_stream(text, "nightscore_stream_open_runs") == 0
    assert _of_stream(text, "nightscore_run_shards", state="finished") == 1
    assert _of_stream(text, "nightscore_run_shard_attempts") == 1
    assert _samples(text)["nightscore_up", frozenset()] == 1


def test_prometheus_s_own_linter_has_nothing_to_say(endpoint):
    lint = program("promtool", "prometheus")
    text = _get(f"{endpoint}/metrics")
    assert {f"{metric.name} " for metric in METRICS} < set(re.findall(r"# HELP (\S+ )", text))
    done = subprocess.run(
        [lint.path, "check", "metrics"], input=text, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_process_is_healthy_at_another_path(endpoint):
    assert _get(f"{endpoint}/-/healthy") == "healthy\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        _get(f"{endpoint}/")


def test_the_command_line_prints_them_once_and_fails_without_postgres(scored):
    def run(**variables: str) -> subprocess.CompletedProcess:
        command = [Path(sys.executable).with_name("nightscore"), "metrics", "--timeout=60"]
        environment = os.environ | variables
        return subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True
        )

    assert _of_stream(run().stdout, "nightscore_run_images", outcome="scored") == scored["scored"]
    with _listener(refuses=True) as port:
        url = f"postgresql+psycopg2://analyst:secret@127.0.0.1:{port}/nightscore"
        done = run(NIGHTSCORE_ANALYST_URL=url)
    assert done.returncode == 1 and "nightscore_up 0.0" in done.stdout
    assert "secret" not in done.stdout + done.stderr


@contextmanager
def _listener(refuses: bool) -> Iterator[int]:
    """A port whose connections are refused, or taken and never answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if not refuses:
            listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("refuses", [True, False], ids=["refuses", "never answers"])
def test_a_scrape_is_answered_when_postgres_is_not_there(scored, refuses):
    with _listener(refuses) as port:
        url = f"postgresql+psycopg2://analyst:secret@127.0.0.1:{port}/nightscore"
        families = list(PostgresCollector(url, timeout_s=2).collect())
    names = {family.name: family.samples[0].value for family in families}
    assert names["nightscore_up"] == 0 and names["nightscore_scrape_seconds"] < PATIENCE_S
    assert len(names) == 2, "old values are not repeated"


def test_a_scrape_is_answered_when_a_table_is_locked(scored):
    from sqlalchemy import text

    collector = PostgresCollector(settings().require_analyst_url(), timeout_s=1)
    with as_owner() as session:
        session.execute(text("LOCK TABLE nightscore.shard"))
        up = next(iter(collector.collect()))
        session.rollback()
    assert up.samples[0].value == 0
    assert _collect()[0].samples[0].value == 1


def test_an_open_run_and_a_failed_one_are_seen(scored):
    """On another stream, whose newest run has not been listed yet."""
    opened = open_run("line", night.make(1, 0).date.isoformat())
    families = {f.name: f for f in _collect()}
    shown = {tuple(s.labels.values()): s.value for s in families["nightscore_run_status"].samples}
    assert shown["line", "open"] == 1
    runs = families["nightscore_stream_open_runs"].samples
    assert {s.labels["stream"]: s.value for s in runs}["line"] >= 1
    with as_owner() as session:
        from ml.database.tables import ScoringRun

        run = session.get(ScoringRun, opened)
        run.status, run.error = "failed", "made to fail"
    families = {f.name: f for f in _collect()}
    shown = {tuple(s.labels.values()): s.value for s in families["nightscore_run_status"].samples}
    assert shown["line", "failed"] == 1


def _collect() -> list[Any]:
    return list(PostgresCollector(settings().require_analyst_url(), timeout_s=60).collect())


def test_the_alerts_are_valid_and_fire_when_they_should():
    promtool = program("promtool", "prometheus").path
    commands = (
        ("check", "config", MONITORING / "prometheus.yml"),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    )
    for command in commands:
        done = subprocess.run([promtool, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(endpoint, tmp_path_factory) -> Iterator[str]:
    """A Prometheus with the example's rules that scrapes the endpoint; gives its address."""
    folder = tmp_path_factory.mktemp("prometheus")
    example = json.dumps(
        {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(MONITORING / "alerts.yml")],
            "scrape_configs": [
                {
                    "job_name": "nightscore",
                    "static_configs": [{"targets": [endpoint.removeprefix("http://")]}],
                }
            ],
        }
    )
    (folder / "prometheus.yml").write_text(example)  # JSON is YAML
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    server = program("prometheus", "prometheus")
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([server.path, *arguments], stderr=log)
        try:
            _wait_for_the_first_scrape(f"http://{address}")
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(30)


@retry(
    retry=retry_if_exception_type((OSError, AssertionError)),
    stop=stop_after_delay(60),
    wait=wait_fixed(0.1),
    reraise=True,
)
def _wait_for_the_first_scrape(prometheus: str) -> None:
    assert _query(prometheus, f'nightscore_run_status{{stream="{STREAM}"}}')


def _query(prometheus: str, expression: str) -> list[Any]:
    parameters = urllib.parse.urlencode({"query": expression})
    return json.loads(_get(f"{prometheus}/api/v1/query?{parameters}"))["data"]["result"]


def test_every_query_of_the_dashboard_finds_the_night(prometheus):
    panels = json.loads((MONITORING / "nightscore.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 15
    empty = [q for q in queries if not _query(prometheus, q.replace("$stream", STREAM))]
    assert empty == []


def test_prometheus_evaluates_every_alert_without_an_error(prometheus):
    @retry(
        retry=retry_if_exception_type(AssertionError),
        stop=stop_after_delay(60),
        wait=wait_fixed(0.2),
        reraise=True,
    )
    def evaluated() -> list[Any]:
        groups = json.loads(_get(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert rules and all(rule["health"] == "ok" for rule in rules), rules
        return rules

    firing = {rule["name"] for rule in evaluated() if rule["state"] == "firing"}
    assert firing <= {"NightscoreManyRejections", "NightscoreRunFailed"}
