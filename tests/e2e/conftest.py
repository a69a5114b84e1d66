"""The stack for the tests of this folder, and a client of its Airflow."""

import httpx
import pytest


@pytest.fixture(scope="session")
def home(airflow_home):
    """The state folder of a stack that has done `nightscore run` on the sample images."""
    return airflow_home


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
