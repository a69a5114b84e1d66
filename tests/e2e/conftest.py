"""One whole stack for the tests of this folder."""

import shutil

import httpx
import pytest

from tests.support.command import NIGHT, REPOSITORY, nightscore

_LESS = {
    "cpu: {epochs: 8,": "cpu: {epochs: 2,",
    "cpu: {epochs: 14,": "cpu: {epochs: 3,",
    "options: {width: 16,": "options: {width: 8,",
    # Several groups of shards in a night.
    "models: [spill-anomaly]\n    lookback_nights: 3\n    shard_size: 50000\n": (
        "models: [spill-anomaly]\n    lookback_nights: 3\n    shard_size: 50\n"
        "    shards_per_task: 2\n"
    ),
}


@pytest.fixture(scope="package")
def home(tmp_path_factory):
    """The state folder of a stack that has done `nightscore run` on the sample images."""
    home = tmp_path_factory.mktemp("stack") / ".nightscore"
    # The repository's configuration, with less training.
    text = (REPOSITORY / "nightscore.yaml").read_text(encoding="utf-8")
    for whole, part in _LESS.items():
        assert text.count(whole) == 1
        text = text.replace(whole, part)
    (home.parent / "nightscore.yaml").write_text(text)
    try:
        printed = nightscore("run", "--date", NIGHT, "--json", home=home)
        (home / "summary.json").write_text(printed)
        yield home
    finally:
        nightscore("down", home=home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="package")
def airflow(home):
    """An HTTP client that is logged in to the stack's Airflow."""
    variables = dict(
        line.split("=", 1) for line in (home / "stack.env").read_text().splitlines() if "=" in line
    )
    variables = {key: value.strip("'\"") for key, value in variables.items()}
    with httpx.Client(base_url=variables["NIGHTSCORE_AIRFLOW_URL"], timeout=30) as client:
        answer = client.post(
            "/auth/token",
            json={
                "username": variables["NIGHTSCORE_AIRFLOW_USERNAME"],
                "password": variables["NIGHTSCORE_AIRFLOW_PASSWORD"],
            },
        )
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield client
