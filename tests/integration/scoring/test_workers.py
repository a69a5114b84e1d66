"""A worker as a container has it: the image, addresses and logins, and a state folder that is empty."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from ml.config.loading import config_path, configuration
from ml.cores import usable_cores
from ml.settings import settings
from ml.storage.object_store import object_store
from tests.support import registered, synthetic_images
from tests.support.proxy import HttpRequest, Proxy

REPOSITORY = Path(__file__).parents[3]
NIGHTS = iter(date(2036, 3, 1) + timedelta(days=10 * n) for n in range(100))
IMAGES = 5


def _make_night() -> str:
    night = next(NIGHTS)
    prefix = configuration().stream("line").prefix
    for n in range(IMAGES):
        content = synthetic_images.shade(
            "dark" if n % 2 else "light", 730_000 + n + night.toordinal()
        )
        object_store().put(f"{prefix}/dt={night}/{n}.png", content)
    return night.isoformat()


def _variables(home: Path, mlflow: str) -> dict[str, str]:
    """All that a worker is told: nothing of this process's environment."""
    known = settings()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        # The image has Nightscore on its path; tests.support stands in for the image.
        "PYTHONPATH": str(REPOSITORY),
        "NIGHTSCORE_CONFIG": str(config_path()),
        "NIGHTSCORE_DATABASE_URL": known.require_database_url(),
        "AWS_ENDPOINT_URL": known.s3_endpoint,
        "AWS_ACCESS_KEY_ID": known.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": known.s3_secret_key.get_secret_value(),
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_TRACKING_USERNAME": known.mlflow_username,
        "MLFLOW_TRACKING_PASSWORD": known.mlflow_password.get_secret_value(),
    }


@pytest.fixture
def downloads(trained) -> Iterator[tuple[str, list[str]]]:
    """An address of MLflow, and the paths of what is downloaded through it."""
    paths: list[str] = []

    def note(request: HttpRequest) -> None:
        if request.method == "GET":
            paths.append(request.path)

    with Proxy(settings().mlflow_uri, note) as proxy:
        yield proxy.url, paths


def _start(night: str, home: Path, mlflow: str) -> subprocess.Popen[str]:
    arguments = ("score", "line", "--date", night, "--json")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.scorer_packages", *arguments],
        cwd=home,
        env=_variables(home, mlflow),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_workers_with_addresses_and_an_empty_folder_score_and_fetch_once(tmp_path, downloads):
    mlflow, paths = downloads
    workers = [_start(_make_night(), tmp_path, mlflow) for _ in range(2)]
    for worker in workers:
        printed, said = worker.communicate()
        assert worker.returncode == 0, said
        counts = json.loads(printed)
        assert counts["scored"] == IMAGES
        shards = registered.query(
            "SELECT device FROM nightscore.shard WHERE run_id = :r", r=counts["run_id"]
        )
        assert [shard["device"] for shard in shards] == ["cpu"]
    assert len([path for path in paths if "model.pt2" in path]) == 1
    assert len([path for path in paths if re.search(r"openvino/\w+\.zip", path)]) == 1
    # The folder held nothing; now it has the version, and no leftovers.
    state = tmp_path / ".nightscore"
    (version,) = (state / "cache" / "programs" / "shades").iterdir()
    names = {path.name.partition("-")[0] for path in version.iterdir()}
    assert names == {"model.pt2", "program.json", "openvino"}
    cores = usable_cores()
    logged = (state / "logs" / "nightscore.log").read_text()
    assert logged.count(f"Scoring on cpu, with {2 * cores} threads on {cores} CPU cores") == 2
