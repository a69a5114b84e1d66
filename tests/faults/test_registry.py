"""MLflow is down, fails during a registration, or its aliases change at a bad moment."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count

import pytest

from ml.errors import ServiceError
from ml.registry import client, promotion, versions
from ml.retrain import steps as retrain
from ml.scoring import steps
from ml.settings import settings
from ml.timeouts import client_limits
from tests.faults.conftest import trials
from tests.support import evidence, night
from tests.support.proxy import Fault, HttpRequest, Proxy
from tests.support.registered import other_than_champion

_PROMOTE = """
import sys
from ml.registry import promotion
from ml.registry.client import mlflow_client
mlflow_client()
print("ready", flush=True)
sys.stdin.readline()
promotion.promote("shades", int(sys.argv[1]), reason="fault suite", by="test")
"""


@pytest.fixture
def two_versions(trained):
    """Two versions of `shades`; the first is champion before and after."""
    first = versions.version_of_alias("shades", "champion")
    yield first, other_than_champion("shades")
    promotion.promote("shades", first, reason="as it was", by="test")


def test_mlflow_is_down_when_versions_are_pinned(outcome, services, monkeypatch):
    monkeypatch.setenv("NIGHTSCORE_RETRY_FOR_S", "1")
    client_limits.cache_clear()
    result = outcome("MLflow down when versions are pinned")
    for _ in range(trials(3)):
        tonight = night.make()
        services.supervisor.stop("mlflow")
        try:
            with pytest.raises(ServiceError, match="MLflow failed at"):
                steps.score_night(tonight.stream, tonight.date.isoformat())
        finally:
            services.supervisor.launch("mlflow")
        result.add(_no_run(tonight), counts=False)
        with result.recovery():
            evidence.wait_for(lambda: evidence.answers(f"{settings().mlflow_uri}/health"))
            steps.score_night(tonight.stream, tonight.date.isoformat())
        result.add(evidence.of_complete_night(tonight))
    client_limits.cache_clear()
    assert result.is_clean


def _no_run(tonight: night.Night) -> evidence.Evidence:
    rows = evidence.query(
        "SELECT run_id FROM reporting.nightly_summary WHERE stream = :s AND night = :n",
        s=tonight.stream,
        n=tonight.date,
    )
    return evidence.Evidence(inconsistent=[f"run {r['run_id']} without versions" for r in rows])


def test_mlflow_fails_in_the_middle_of_a_registration(outcome, services, monkeypatch):
    """Each trial fails at another request; then the registration is repeated."""
    result = outcome("MLflow fails at a request of a registration")
    champion = versions.version_of_alias("shades", "champion")
    snapshot = retrain.snapshot("shades")
    requests = _requests_of_a_registration(monkeypatch)
    assert requests > 5
    trial_count = trials(6)
    for trial in range(trial_count):
        decided = retrain.gate(retrain.evaluate(retrain.train(snapshot)))
        before = versions.list_versions("shades")
        struck = (
            _register(
                decided, monkeypatch, fail_at=requests * (2 * trial + 1) // (2 * trial_count)
            ).faults
            > 0
        )
        with result.recovery():
            registered = retrain.register(decided)
        new = [v for v in versions.list_versions("shades") if v not in before]
        wrong = [f"one training made the versions {new}"] if new != [registered["version"]] else []
        rows = evidence.query(
            "SELECT FROM nightscore.model_version WHERE mlflow_run_id = :r", r=decided["run_id"]
        )
        wrong += [f"{len(rows)} rows of one version"] if len(rows) != 1 else []
        wrong += evidence.champions(("shades", "moulds"))
        if versions.version_of_alias("shades", "champion") != champion:
            wrong.append("a registration has moved the champion")
        result.add(evidence.Evidence(inconsistent=wrong), struck=struck)
    assert result.is_clean


def _requests_of_a_registration(monkeypatch) -> int:
    """The requests of a repeated registration, which has nearly as many as the first."""
    first = client.mlflow_client().get_model_version("shades", "1")
    decided = {"model": "shades", "run_id": first.run_id, "passed": True}
    return _register(decided, monkeypatch).seen.total()


def _register(decided: dict, monkeypatch, fail_at: int | None = None) -> Proxy:
    """Register through a proxy, one of whose answers is an error."""
    requests = count()

    def decide(request: HttpRequest) -> Fault | None:
        return Fault(status=500) if next(requests) == fail_at else None

    with Proxy(settings().mlflow_uri, decide) as proxy, monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("NIGHTSCORE_RETRY_FOR_S", "0")
        _connect_anew()
        with suppress(ServiceError):
            retrain.register(decided)
    _connect_anew()
    return proxy


def _connect_anew() -> None:
    settings.cache_clear()
    client_limits.cache_clear()
    client.mlflow_client.cache_clear()
    client.mlflow_client()


def test_the_champion_moves_between_pin_and_scoring(outcome, two_versions):
    result = outcome("champion moved between pin and scoring")
    for _ in range(trials(5)):
        tonight = night.make()
        run_id = steps.open_run(tonight.stream, tonight.date.isoformat())
        pinned = versions.version_of_alias("shades", "champion")
        steps.discover(run_id)
        other = next(v for v in two_versions if v != pinned)
        promotion.promote("shades", other, reason="fault suite", by="test")
        for shard in steps.plan_shards(run_id):
            steps.score_shard(run_id, shard)
        steps.reconcile(run_id)
        steps.report(run_id)
        result.add(evidence.of_complete_night(tonight))
        used = evidence.query(
            "SELECT DISTINCT version FROM nightscore.prediction WHERE run_id = :r"
            " AND model = 'shades'",
            r=run_id,
        )
        assert used == [{"version": pinned}]
    assert result.is_clean


def test_kill_9_of_a_promotion_at_random_moments(outcome, two_versions):
    """There is always exactly one champion, and the audit agrees with MLflow."""
    result = outcome("promotion killed (kill -9)")
    moments = random.Random(11)
    started = time.monotonic()
    promotion.promote("shades", two_versions[1], reason="fault suite", by="test")
    whole_s = time.monotonic() - started
    for _ in range(trials(25)):
        before = versions.version_of_alias("shades", "champion")
        other = next(v for v in two_versions if v != before)
        process = subprocess.Popen(
            [sys.executable, "-c", _PROMOTE, str(other)],
            env=os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(moments.uniform(0, whole_s))
        struck = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with result.recovery():
            champion = promotion.champion("shades")  # what the next scoring run does
        wrong = evidence.champions(("shades", "moulds"))
        if champion not in (before, other):
            wrong.append(f"the champion is {champion}, neither {before} nor {other}")
        wrong += [
            f"promotion {row['promotion_id']} is left pending"
            for row in evidence.query(
                "SELECT promotion_id FROM nightscore.promotion WHERE state = 'pending'"
            )
        ]
        result.add(evidence.Evidence(inconsistent=wrong), struck=struck)
    assert result.is_clean
