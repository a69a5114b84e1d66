"""After whole nights: who holds which secret, where none may be, and who is let in."""

import shutil

import httpx
import psutil
import psycopg2
import pytest

from ml.settings import MAINTAINER_ENV, OWNER_ENV
from ml.stack.layout import known_ports
from ml.stack.local import LocalStack
from tests.support.command import PRINTED, nightscore
from tests.support.secret_search import forms, hits

AIRFLOW = {"airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"}
# Tasks are children of the scheduler.
WORKERS = {"airflow-scheduler"}
# It shows the reports.
PAGES = {"airflow-api-server"}
# Gone meanwhile; or what supervises a task in Airflow, which closes itself to all but root
# (PR_SET_DUMPABLE).
UNSEEN = (psutil.NoSuchProcess, psutil.AccessDenied)
HOLDERS: dict[str, set[str]] = {
    "postgres": set(),
    "owner": set(),
    "maintainer": set(),
    "analyst": PAGES,
    "writer": WORKERS,
    "s3_key": WORKERS | PAGES | {"s3", "mlflow"},
    "s3_secret": WORKERS | PAGES | {"s3", "mlflow"},
    "mlflow": WORKERS,
    "mlflow_database": {"mlflow"},
    "mlflow_session": {"mlflow"},
    "airflow": set(),
    "airflow_database": AIRFLOW,
    "airflow_fernet": AIRFLOW,
    "airflow_jwt": AIRFLOW,
    "airflow_session": AIRFLOW,
}


@pytest.fixture(scope="module")
def stack(home) -> LocalStack:
    return LocalStack(home)


def _processes(stack: LocalStack) -> dict[psutil.Process, str]:
    """Every process of the stack → the name of the supervised one that it descends from."""
    names = dict.fromkeys(stack.supervisor.processes(), "supervisord")
    for status in stack.status():
        parent = psutil.Process(status.pid)
        names |= dict.fromkeys((parent, *parent.children(recursive=True)), status.name)
    return names


def _environments(stack: LocalStack) -> dict[str, str]:
    """Process → its environment and command line.

    Some write a title over the environment that /proc shows, so what supervisord gives them is
    looked at as well.
    """
    texts = {p.name: str(p) for p in stack._processes(known_ports(stack.layout))}
    for process, name in _processes(stack).items():
        try:
            visible = process.environ(), process.cmdline()
        except UNSEEN:
            continue
        texts[name] = texts.get(name, "") + str(visible)
    return texts


def test_each_process_holds_the_logins_of_its_own_work(stack):
    environments = _environments(stack)
    assert {*AIRFLOW, "postgres", "s3", "mlflow", "supervisord"} == set(environments)
    assert set(HOLDERS) == set(stack.layout.passwords)
    holders = {
        secret: {name for name, text in environments.items() if password in text}
        for secret, password in stack.layout.passwords.items()
    }
    assert holders == HOLDERS


def test_the_owner_s_login_is_in_one_file_which_only_a_migration_opens(home, stack):
    path, owner = home / OWNER_ENV, stack.layout.passwords["owner"]
    assert owner in path.read_text()
    assert owner not in (home / "stack.env").read_text()
    aside = shutil.move(path, path.with_name("aside"))
    try:
        nightscore("doctor", home=home)
        nightscore("sql", "SELECT 1", home=home)
        assert "permission denied" in nightscore("migrate", home=home, fails=True)
    finally:
        shutil.move(aside, path)
    nightscore("migrate", home=home)


def test_the_maintainer_s_login_is_in_a_file_of_its_own(home, stack):
    maintainer = stack.layout.passwords["maintainer"]
    assert maintainer in (home / MAINTAINER_ENV).read_text()
    assert maintainer not in (home / "stack.env").read_text()


def test_everything_listens_on_loopback_only(stack):
    ports = {}
    for process, name in _processes(stack).items():
        try:
            sockets = process.net_connections("inet")
        except UNSEEN:
            continue
        for connection in sockets:
            if connection.status == psutil.CONN_LISTEN or connection.type != 1:
                assert connection.laddr.ip == "127.0.0.1", (name, connection)
                ports[connection.laddr.port] = name
    expected = known_ports(stack.layout)
    assert {expected["postgres"], expected["s3"], expected["mlflow"], expected["airflow"]} <= set(
        ports
    )


def test_the_socket_of_supervisord_and_what_lies_in_the_state_folder_are_the_owner_s(home, stack):
    for path in (home, stack.supervisor.socket):
        assert path.stat().st_mode & 0o077 == 0, path
    secrets = {form for written in forms(stack.layout).values() for form in written}
    files = [home / "stack.env", *(path for path in (home / "conf").iterdir() if path.is_file())]
    holding = [path for path in files if any(s in path.read_bytes() for s in secrets)]
    assert len(holding) >= 5
    for path in holding:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v2/dags"),
        ("GET", "/api/v2/connections"),
        ("GET", "/api/v2/config"),
        ("PATCH", "/api/v2/dags/score_spill"),
        ("POST", "/api/v2/dags/score_spill/dagRuns"),
        ("GET", "/api/v2/eventLogs"),
        ("GET", "/ui/config"),
        ("GET", "/nightscore/reports/"),
        ("GET", "/nightscore/reports/00000000-0000-0000-0000-000000000000"),
        ("GET", "/nightscore/reports/openapi.json"),
        ("GET", "/nightscore/reports/docs"),
        ("GET", "/execution/variables/x"),
        ("GET", "/execution/connections/nightscore_postgres"),
        ("PATCH", "/execution/task-instances/00000000-0000-0000-0000-000000000000/run"),
    ],
)
@pytest.mark.parametrize("login", [{}, {"Authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x"}])
def test_airflow_answers_nobody_who_is_not_logged_in(airflow, method, path, login):
    body = None if method == "GET" else {}
    answer = httpx.request(method, airflow.base_url.join(path), headers=login, json=body)
    assert answer.status_code in (401, 403), answer.text[:200]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/signup"),
        ("POST", "/api/2.0/mlflow/experiments/search"),
        ("GET", "/api/2.0/mlflow/registered-models/search"),
        ("GET", "/api/2.0/mlflow-artifacts/artifacts"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x.txt"),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/x.txt"),
        ("GET", "/ajax-api/2.0/mlflow/experiments/search"),
        ("GET", "/get-artifact?path=x&run_uuid=x"),
        ("GET", "/model-versions/get-artifact?path=x&name=spill-anomaly&version=1"),
        ("POST", "/graphql"),
        ("GET", "/api/2.0/mlflow/users/get?username=admin"),
        ("POST", "/api/2.0/mlflow/users/create"),
        ("POST", "/api/3.0/mlflow/traces/search"),
        ("POST", "/v1/traces"),
    ],
)
@pytest.mark.parametrize("auth", [None, ("admin", "wrong"), ("admin", "password1234")])
def test_mlflow_answers_nobody_who_is_not_logged_in(stack, method, path, auth):
    address = f"http://127.0.0.1:{known_ports(stack.layout)['mlflow']}{path}"
    body = None if method == "GET" else {}
    answer = httpx.request(method, address, auth=auth, json=body)
    assert answer.status_code in (401, 403), answer.text[:200]


@pytest.mark.parametrize("password", [None, "", "wrong"])
@pytest.mark.parametrize("role", ["postgres", "nightscore_owner", "nightscore_analyst", "nobody"])
def test_postgres_lets_nobody_in_without_the_password(stack, role, password, monkeypatch):
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    with pytest.raises(psycopg2.OperationalError, match=r"authentication failed|no password"):
        psycopg2.connect(
            host="127.0.0.1",
            port=known_ports(stack.layout)["postgres"],
            user=role,
            password=password,
            dbname="nightscore",
        )


def test_no_secret_is_in_anything_that_the_stack_or_its_commands_have_written(stack):
    assert PRINTED
    assert hits(stack.layout, PRINTED) == []


def test_the_search_finds_a_secret_wherever_it_is_planted(stack):
    """So that the test above means something."""
    password = stack.layout.passwords["mlflow"]
    planted = stack.layout.airflow / "logs" / "planted.log"
    planted.write_text(f"requests to http://x failed: Authorization: Basic {password}")
    with (
        psycopg2.connect(
            host="127.0.0.1",
            port=known_ports(stack.layout)["postgres"],
            user="mlflow",
            password=stack.layout.passwords["mlflow_database"],
            dbname="mlflow",
        ) as connection,
        connection.cursor() as cursor,
    ):
        # Long enough to be compressed where it is stored.
        cursor.execute("CREATE TABLE planted AS SELECT %s AS text", [f"{password} " * 1000])
    try:
        found = " ".join(hits(stack.layout, {"a page": b"?X-Amz-Signature=0123456789abcdef"}))
    finally:
        planted.unlink()
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE planted")
            connection.commit()
        connection.close()
    assert "mlflow in airflow/logs/planted.log" in found
    assert "header in airflow/logs/planted.log" in found
    assert "mlflow in the database mlflow" in found
    assert "signature of a URL in a page" in found
