"""A night in containers: who reaches whom, what is limited, and a worker that is killed."""

import json
import re
import socket
import subprocess
import time
from datetime import UTC, datetime

import pytest
import yaml

from tests.docker.composition import Composition, run
from tests.docker.conftest import CONFIGURATION, MEASURED
from tests.support import synthetic_images

OURS = (
    *("mlflow", "airflow-api-server", "airflow-scheduler", "airflow-dag-processor"),
    *("airflow-triggerer", "worker", "worker-gpu", "nightscore-metrics"),
)
JOBS = (
    *("prepare-postgres", "prepare-metadata", "prepare-buckets"),
    *("migrate", "migrate-airflow", "convert"),
)
_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def reaches(container: str, host: str, port: int) -> bool:
    command = ["docker", "exec", container, "/usr/bin/python3", "-c", _CONNECT, host, str(port)]
    return subprocess.run(command, capture_output=True).returncode == 0


def test_every_job_has_ended_well(composition):
    codes = {job: composition.inspect(job)[0]["State"]["ExitCode"] for job in JOBS}
    assert codes == dict.fromkeys(JOBS, 0)


def test_with_gpus_the_worker_of_their_queue_reserves_one(composition):
    text = composition.compose("-f", "compose.yaml", "-f", "compose.gpu.yaml", "config")
    worker = yaml.safe_load(text)["services"]["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"]) == ("nvidia", ["0"])
    assert worker["environment"]["NIGHTSCORE_DEVICE"] == "cuda"
    assert worker["image"].startswith("nightscore/trainer:")


def test_workers_reach_the_api_of_airflow_and_not_its_database(composition):
    for service in ("worker", "worker-gpu"):
        for container in composition.containers(service):
            assert reaches(container, "airflow-api-server", 8080)
            assert reaches(container, "postgres", 5432)
            assert reaches(container, "s3", 8333)
            assert not reaches(container, "metadata", 5432)
    # Nor by its address, where the name is unknown.
    (metadata,) = composition.inspect("metadata")
    addresses = [each["IPAddress"] for each in metadata["NetworkSettings"]["Networks"].values()]
    assert addresses
    assert not any(reaches(composition.containers("worker")[0], each, 5432) for each in addresses)
    assert reaches(composition.containers("airflow-scheduler")[0], "metadata", 5432)
    assert not reaches(composition.containers("airflow-scheduler")[0], "postgres", 5432)


def test_workers_hold_no_login_of_airflow_s_database_and_no_key_of_its_tokens(composition):
    for container in composition.containers("worker"):
        files = run("docker", "exec", container, "ls", "/run/secrets").split()
        assert sorted(files) == ["airflow_api_secret_key", "broker_url", "connections.json"]
        text = run("docker", "exec", container, "sh", "-c", "cat /run/secrets/*; env")
        for secret in ("airflow_database", "airflow_jwt_secret", "airflow_fernet_key", "owner"):
            assert composition.secret(secret) not in text


def test_the_api_server_holds_the_analyst_s_login_of_the_results_only(composition):
    (container,) = composition.containers("airflow-api-server")
    text = run("docker", "exec", container, "sh", "-c", "cat /run/secrets/*; env")
    assert composition.secret("analyst") in text
    for secret in ("writer", "owner", "s3_worker_key", "s3_administrator_key"):
        assert composition.secret(secret) not in text


def test_only_the_pages_are_published_and_on_loopback(composition):
    published = {}
    for container in json.loads(run("docker", "inspect", *_all(composition))):
        for port, bindings in (container["NetworkSettings"]["Ports"] or {}).items():
            for binding in bindings or []:
                published[port] = binding["HostIp"]
    assert published == {"8080/tcp": "127.0.0.1", "5000/tcp": "127.0.0.1"}
    for port in composition.ports.values():
        socket.create_connection(("127.0.0.1", int(port)), 5).close()


def _all(composition: Composition) -> list[str]:
    return [each for service in (*OURS, "postgres", "s3", "broker") for each in composition.containers(service)]  # fmt: skip


@pytest.mark.parametrize("service", OURS)
def test_our_containers_are_confined(composition, service):
    for container in composition.inspect(service):
        host = container["HostConfig"]
        assert container["Config"]["User"] == "50000:0"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert "Health" in container["State"]
        assert run("docker", "exec", container["Id"], "sh", "-c", "touch /x 2>&1 || true")
    if service == "worker":
        assert {each["HostConfig"]["NanoCpus"] for each in composition.inspect(service)} == {5 * 10**8}  # fmt: skip


def test_a_changed_stream_needs_no_new_image(composition):
    second = CONFIGURATION.replace("  line:", "  second:").replace("streams/line", "streams/second")
    stream = second[second.index("  second:") : second.index("models:\n  moulds:")]
    changed = CONFIGURATION.replace("models:\n  moulds:", f"{stream}models:\n  moulds:", 1)
    composition.configure(changed)
    with composition.airflow() as api:
        api.unpause("score_second", timeout_s=180)


def test_a_worker_is_killed_in_mid_night_and_nothing_is_lost_or_twice(
    composition, trained, tmp_path
):
    images, night = 4_000, datetime.now(UTC).date().isoformat()
    folder = tmp_path / "night"
    folder.mkdir()
    for number in range(images):
        kind = "spot" if number % 20 == 0 else "normal"
        (folder / f"{number:05}.png").write_bytes(synthetic_images.mould(kind, 50_000 + number))
    (folder / "broken.png").write_bytes(b"not an image")
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and str(path).startswith("/tmp/pytest"):
            path.chmod(0o755)
    composition.nightscore("ingest", "/data/night", "--stream", "line", "--date", night, folder=tmp_path)  # fmt: skip
    with composition.airflow() as api:
        api.unpause("score_line")
        began = time.monotonic()
        dag_run = api.trigger("score_line", {"night": night})
        victim = _wait_for_two_workers(api, dag_run)
        run("docker", "kill", victim)
        state = api.wait([dag_run], timeout_s=600)[dag_run]
        seconds = time.monotonic() - began
        assert state == "success", api.failure(dag_run)
        tries = [each["try_number"] for each in api.task_instances(dag_run) if each["task_id"] == "score_shards"]  # fmt: skip
    assert max(tries) > 1  # The killed worker's tasks were tried again.
    (summary,) = composition.rows(
        f"SELECT status, discovered, scored, rejected FROM reporting.nightly_summary WHERE stream = 'line' AND night = '{night}'"
    )
    assert summary == {"status": "finished", "discovered": images + 1, "scored": images, "rejected": 1}  # fmt: skip
    (counted,) = composition.rows(
        f"SELECT count(*) AS results, count(DISTINCT image_uri) AS images FROM reporting.predictions WHERE stream = 'line' AND night = '{night}'"
    )
    assert counted == {"results": images, "images": images}
    MEASURED.append(
        f"a night of {images:,} images, a worker of two killed in its middle: {seconds:.0f} s; "
        "0 lost, 0 duplicated"
    )


def _wait_for_two_workers(api, dag_run) -> str:
    """Wait until both workers score; returns the container of one of them."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        hosts = {
            each["hostname"]
            for each in api.task_instances(dag_run)
            if each["task_id"] == "score_shards" and each["state"] == "running" and each["hostname"]
        }
        if len(hosts) > 1:
            return sorted(hosts)[0]
        time.sleep(0.5)
    raise AssertionError("one worker took all tasks")


def test_the_pages_show_the_night_with_the_analyst_s_login(composition, trained):
    with composition.airflow() as api:
        listed = api._client.get("/nightscore/reports/", follow_redirects=True)
        (address, *_) = re.findall(r'href="(/nightscore/reports/[0-9a-f-]{36})"', listed.text)
        report = api._client.get(address)
    assert report.status_code == 200
    assert "line" in report.text


def test_the_metrics_of_the_night_reach_the_network_of_monitoring(composition, trained):
    (container,) = composition.containers("airflow-api-server")
    code = (
        "import urllib.request as u;"
        "print(u.urlopen('http://nightscore-metrics:9108/metrics', timeout=10).read().decode())"
    )
    metrics = run("docker", "exec", container, "/usr/bin/python3", "-c", code)
    assert "nightscore_up 1.0" in metrics
    assert 'stream="line"' in metrics


def test_the_logs_of_a_worker_that_is_gone_are_in_s3(composition, trained):
    with composition.airflow() as api:
        runs = api._call("GET", "/api/v2/dags/retrain_moulds/dagRuns")["dag_runs"]
        assert runs
    (gpu,) = composition.containers("worker-gpu")
    listed = composition.compose(
        "run", "--rm", "-T", "cli", "python3", "-c",
        "from ml.storage.object_store import object_store as o;"
        "print(*[i.uri for p in o().list_pages('s3://airflow-logs/dag_id=retrain_moulds') for i in p])",
    )  # fmt: skip
    assert gpu
    assert "task_id=train" in listed


def test_memory_and_restarts(composition, trained):
    containers = _all(composition)
    used = run("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *containers)
    MEASURED.extend(f"memory: {line}" for line in sorted(used.splitlines()))
    restarts = {each["Name"]: each["RestartCount"] for each in json.loads(run("docker", "inspect", *containers))}  # fmt: skip
    assert set(restarts.values()) == {0}
