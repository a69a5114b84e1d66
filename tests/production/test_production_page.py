"""docs/production.md, followed to the letter: `make production-test`.

Debian's PostgreSQL and SeaweedFS; MLflow and Airflow as the page starts them; TLS everywhere, with an
authority of their own. It needs no root.
"""

import json
from collections.abc import Iterator

import httpx
import psycopg2
import pytest

from tests.production.installation import IMAGES, NIGHT, STREAM, Installation
from tests.production.services import trust
from tests.support.tls import Authority

OPERATOR = "set -a; . $CONF/operator.env\n"


@pytest.fixture(scope="module")
def followed(tmp_path_factory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("production"))
    try:
        installation.follow()
        yield installation
    finally:
        installation.stop()


def test_the_night_is_scored(followed):
    sql = "SELECT * FROM reporting.predictions"
    rows = json.loads(followed.run(f'{OPERATOR}nightscore sql "{sql}" --json'))
    assert len(rows) == IMAGES
    assert all(row["image_uri"].split("/")[-1].startswith(row["predicted_class"]) for row in rows)
    [night] = followed.query(
        "nightscore", "SELECT stream, night::text, status, scored FROM reporting.nightly_summary"
    )
    assert night == (STREAM, NIGHT, "finished", IMAGES)
    shown = list(followed.printed.values())[-1]
    assert NIGHT in shown and "champion" in shown


def test_doctor_finds_nothing_wrong(followed):
    checks = json.loads(followed.run(f"{OPERATOR}nightscore doctor --json"))
    assert {check["name"] for check in checks} >= {"postgres", "analyst", "s3", "mlflow", "airflow"}
    assert all(check["ok"] for check in checks)


def test_the_report_is_on_a_page_of_airflow(followed):
    password = (followed.conf / "airflow").read_text().strip()
    with httpx.Client(base_url=followed.airflow, verify=trust(followed.authority)) as client:
        login = {"username": "admin", "password": password}
        token = client.post("/auth/token", json=login).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        assert STREAM in client.get("/nightscore/reports/").text
        [(run_id,)] = followed.query(
            "nightscore", "SELECT run_id::text FROM nightscore.scoring_run"
        )
        report = client.get(f"/nightscore/reports/{run_id}")
        assert report.status_code == httpx.codes.OK
        assert STREAM in report.text and NIGHT in report.text


def test_postgres_lets_nobody_in_without_tls(followed):
    with pytest.raises(psycopg2.OperationalError, match="no encryption"):
        followed.query("postgres", "SELECT 1", sslmode="disable")
    sessions = followed.query(
        "postgres",
        "SELECT DISTINCT usename, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
        " WHERE backend_type = 'client backend'",
    )
    assert {("airflow", True), ("mlflow", True)} <= set(sessions)
    assert all(encrypted for _, encrypted in sessions)


def test_the_api_server_has_the_analyst_s_login_only(followed):
    [service] = [block for block in followed.blocks if "airflow api-server" in block.text]
    variables = followed.run(f"{service.text.splitlines()[0]}\nenv")
    assert "nightscore_analyst" in variables
    for secret in ("writer", "owner", "mlflow"):
        assert (followed.conf / secret).read_text().strip() not in variables


def test_no_client_trusts_servers_that_another_authority_has_signed(followed, tmp_path):
    """The last test: the services read the same file."""
    authority = followed.conf / "ca.pem"
    before = authority.read_text()
    authority.write_text(Authority(tmp_path).path.read_text())
    try:
        checks = json.loads(followed.fail(f"{OPERATOR}nightscore doctor --json"))
    finally:
        authority.write_text(before)
    failures = {check["name"]: check["message"] for check in checks if not check["ok"]}
    assert failures.keys() == {"postgres", "analyst", "s3", "mlflow", "airflow"}
    assert all("certificate" in message.lower() for message in failures.values()), failures
