"""The local stack: private, safe to start twice, honest about what died, and it loses no data."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import httpx
import psutil
import psycopg2
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ml.errors import ConfigurationError, ServiceError
from ml.settings import settings
from ml.stack import postgres
from ml.stack.layout import known_ports
from ml.stack.local import LocalStack

REPOSITORY = Path(__file__).parents[3]


def _run(*arguments: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # MLflow's client has put its address into this process's environment.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    return subprocess.run(
        [Path(sys.executable).parent / "nightscore", *arguments],
        env=inherited | {"NIGHTSCORE_HOME": str(home)} | variables,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


def _connect(url: str, **changes: str):
    import sqlalchemy as sa

    parsed = sa.make_url(url)
    return psycopg2.connect(
        **{
            "host": parsed.host,
            "port": parsed.port,
            "user": parsed.username,
            "password": parsed.password,
            "dbname": parsed.database,
            **changes,
        }
    )


class TestPrivacy:
    def test_everything_listens_on_loopback_only(self, services):
        listening = {
            connection.laddr.ip
            for process in services.supervisor.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}

    def test_the_state_folder_and_its_secrets_are_their_owner_s(self, services):
        home = services.layout.home
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for path in (home / "stack.env", *services.layout.conf.glob("*.json")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    def test_no_password_is_in_a_command_line(self, services):
        passwords = services.layout.passwords.values()
        for process in services.supervisor.processes():
            line = " ".join(process.cmdline())
            assert not any(password in line for password in passwords), process.name()

    def test_wrong_credentials_are_refused(self, services):
        current = settings()
        with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
            _connect(current.require_database_url(), password="wrong")
        client = boto3.client(
            "s3",
            endpoint_url=current.s3_endpoint,
            aws_access_key_id=current.s3_access_key,
            aws_secret_access_key="x" * 40,
            region_name="us-east-1",
        )
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            client.list_objects_v2(Bucket="nightscore")
        assert (
            httpx.get(f"{current.mlflow_uri}/api/2.0/mlflow/experiments/search").status_code == 401
        )


def _s3(**changes: str):
    current = settings()
    return boto3.client(
        "s3",
        **{
            "endpoint_url": current.s3_endpoint,
            "aws_access_key_id": current.s3_access_key,
            "aws_secret_access_key": current.s3_secret_key.get_secret_value(),
            "region_name": "us-east-1",
            "config": Config(signature_version="s3v4"),
            **changes,
        },
    )


class TestS3:
    """It answers what is signed with its key, and nothing else."""

    @pytest.fixture(autouse=True)
    def _an_object(self, store_and_database):
        _s3().put_object(Bucket="nightscore", Key="guarded.txt", Body=b"guarded")

    def _is_untouched(self) -> bool:
        found = _s3().get_object(Bucket="nightscore", Key="guarded.txt")
        return found["Body"].read() == b"guarded"

    @pytest.mark.parametrize("path", ["/", "/nightscore", "/nightscore?list-type=2",
                                      "/nightscore/guarded.txt", "/mlflow/x", "/new-bucket"])  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
    @pytest.mark.parametrize(
        "header", [{}, {"Authorization": "AWS4-HMAC-SHA256 nonsense"}, {"Authorization": "AWS x:y"}]
    )
    def test_a_request_that_is_not_signed_is_refused(self, path, method, header):
        answer = httpx.request(method, settings().s3_endpoint + path, headers=header)
        assert 400 <= answer.status_code <= 403, answer.text[:300]
        assert self._is_untouched()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"aws_secret_access_key": "x" * 40},
            {"aws_secret_access_key": ""},
            {"aws_access_key_id": "UNKNOWNKEY0123456789"},
        ],
        ids=["secret", "empty", "key"],
    )
    @pytest.mark.parametrize(
        ("action", "arguments"),
        [
            ("list_buckets", {}),
            ("list_objects_v2", {"Bucket": "nightscore"}),
            ("get_object", {"Bucket": "nightscore", "Key": "guarded.txt"}),
            ("put_object", {"Bucket": "nightscore", "Key": "guarded.txt", "Body": b"other"}),
            ("delete_object", {"Bucket": "nightscore", "Key": "guarded.txt"}),
            ("create_bucket", {"Bucket": "mine"}),
        ],
    )
    def test_a_wrong_key_is_refused(self, action, arguments, wrong):
        with pytest.raises((ClientError, BotoCoreError), match=r"403|Signature|InvalidAccessKey"):
            getattr(_s3(**wrong), action)(**arguments)
        assert self._is_untouched()

    @pytest.mark.parametrize("change", ["signature", "key", "method", "expired", "secret"])
    def test_a_signed_address_is_good_for_what_was_signed_only(self, change):
        client = _s3(aws_secret_access_key="x" * 40) if change == "secret" else _s3()
        wanted = {"Bucket": "nightscore", "Key": "guarded.txt"}
        lasts = 1 if change == "expired" else 60
        address = client.generate_presigned_url("get_object", wanted, ExpiresIn=lasts)
        if change == "expired":
            time.sleep(2)
        if change == "signature":
            address = address[:-1] + ("0" if address[-1] != "0" else "1")
        if change == "key":
            address = address.replace("guarded.txt", "another.txt")
        method = "PUT" if change == "method" else "GET"
        assert httpx.request(method, address).status_code in (400, 403)
        assert self._is_untouched()


class TestRoles:
    def test_the_analyst_reads_the_views_and_nothing_else(self, store_and_database):
        with (
            _connect(settings().require_analyst_url()) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT count(*) FROM reporting.predictions")
            for statement in (
                "SELECT * FROM nightscore.prediction",
                "DELETE FROM reporting.predictions",
                "CREATE TABLE reporting.mine (x int)",
                "CREATE TABLE public.mine (x int)",
                "SELECT nightscore.ensure_night('2026-01-01')",
            ):
                connection.rollback()
                with pytest.raises(
                    (
                        psycopg2.errors.InsufficientPrivilege,
                        psycopg2.errors.ObjectNotInPrerequisiteState,
                    )
                ):
                    cursor.execute(statement)

    def test_the_writer_makes_partitions_by_the_function_only(self, store_and_database):
        with (
            _connect(settings().require_database_url()) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT nightscore.ensure_night('2001-02-03')")
            cursor.execute("SELECT to_regclass('nightscore.prediction_20010203') IS NOT NULL")
            assert cursor.fetchone() == (True,)
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute("CREATE TABLE nightscore.mine (x int)")

    def test_the_command_sql_is_the_analyst(self, store_and_database):
        home = store_and_database.layout.home
        who = _run("sql", "SELECT current_user AS who", "--json", home=home)
        assert json.loads(who.stdout) == [{"who": "nightscore_analyst"}]
        refused = _run("sql", "DROP VIEW reporting.predictions", home=home)
        assert refused.returncode == 1
        assert "must be owner" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_starting_twice_is_harmless(services):
    services.up(("postgres", "s3", "mlflow"))
    before = {process.name: process.pid for process in services.status()}
    lines: list[str] = []
    services.up(("postgres", "s3", "mlflow"), on_message=lines.append)
    assert {process.name: process.pid for process in services.status()} == before
    assert lines == ["the stack is up already"]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A stack of its own, of Postgres and S3, for tests that break it."""
    monkeypatch.setenv("NIGHTSCORE_HOME", str(tmp_path / "stack"))
    settings.cache_clear()
    made = LocalStack(tmp_path / "stack")
    made.up(("postgres", "s3"))
    yield made
    made.down()
    monkeypatch.undo()
    settings.cache_clear()


def _owner(stack: LocalStack):
    settings.cache_clear()
    connection = _connect(settings().require_owner_url())
    connection.autocommit = True
    return connection


def test_after_a_kill_9_of_everything_nothing_is_lost(small):
    with _owner(small).cursor() as cursor:
        cursor.execute("CREATE TABLE nightscore.kept AS SELECT generate_series(1, 1000) AS n")
    (small.layout.s3 / "nightscore" / "kept.txt").write_text("kept")
    victims = small.supervisor.processes()
    assert len(victims) >= 3
    for process in victims:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(victims, timeout=60)
    assert small.status() == []
    small.up(("postgres", "s3"))
    with _owner(small).cursor() as cursor:
        cursor.execute("SELECT count(*) FROM nightscore.kept")
        assert cursor.fetchone() == (1000,)
    assert (small.layout.s3 / "nightscore" / "kept.txt").read_text() == "kept"


def test_after_a_kill_9_of_the_supervisor_alone_up_and_down_still_work(small):
    supervisors = [
        p for p in small.supervisor.processes() if "supervisord" in " ".join(p.cmdline())
    ]
    for process in supervisors:
        process.kill()
    psutil.wait_procs(supervisors, timeout=60)
    assert small.supervisor.processes()
    small.up(("postgres", "s3"))
    assert all(process.is_running for process in small.status())
    assert small.down()
    assert small.supervisor.processes() == []


def test_down_leaves_nothing_running_and_can_be_repeated(small):
    assert small.down() is True
    assert small.supervisor.processes() == []
    assert small.status() == []
    assert small.down() is False


def test_a_process_that_died_and_cannot_start_is_named_with_its_log(small):
    home = small.layout.home
    with (small.layout.postgres / "postgresql.conf").open("a") as file:
        file.write("\nnonsense = yes\n")
    postgres = next(process for process in small.status() if process.name == "postgres")
    psutil.Process(postgres.pid).kill()
    deadline = time.monotonic() + 60
    while next(p for p in small.status() if p.name == "postgres").state != "FATAL":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    shown = _run("status", home=home)
    assert shown.returncode == 1
    assert "postgres is FATAL" in shown.stderr
    assert "nonsense" in shown.stderr


def test_a_process_that_is_killed_once_comes_back(small):
    before = next(process for process in small.status() if process.name == "s3")
    psutil.Process(before.pid).kill()
    deadline = time.monotonic() + 30
    while True:
        after = next(process for process in small.status() if process.name == "s3")
        if after.is_running and after.pid != before.pid:
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_password_is_changed_by_the_file_and_a_start(small):
    """`passwords.json` is the one place; what ran with the old password is started again."""
    import sqlalchemy as sa

    old = settings().require_database_url()
    path = small.layout.conf / "passwords.json"
    known = json.loads(path.read_text())
    small.layout.write(path, json.dumps(known | {"writer": "f" * 32}))
    LocalStack(small.layout.home).up(("postgres", "s3"))
    new = settings().require_database_url()
    assert "f" * 32 in new
    sa.create_engine(new).connect().close()
    with pytest.raises(sa.exc.OperationalError, match="authentication failed"):
        sa.create_engine(old).connect()


def test_a_folder_that_postgres_may_not_pass_through_is_named(tmp_path):
    folder = tmp_path / "private" / "bin"
    folder.mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    with pytest.raises(ConfigurationError, match=r"may not pass through \S*/private\.") as caught:
        postgres.require_traversable(folder / "initdb")
    assert f"chmod o+x {tmp_path / 'private'}" in caught.value.hint


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class TestPorts:
    def test_a_server_is_ready_only_when_it_answers_itself(self, small):
        """Another program that answers in its place, as another stack's server would."""
        port = known_ports(small.layout)["mlflow"]
        server = ThreadingHTTPServer(("127.0.0.1", port), _Healthy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(ServiceError, match=r"another program \(.*\) has taken its port"):
                small.up(("postgres", "s3", "mlflow"))
        finally:
            server.shutdown()
            server.server_close()

    def test_a_start_that_failed_does_not_keep_its_ports(self, tmp_path, monkeypatch):
        """As when another stack has taken them while only the supervisor was up."""
        monkeypatch.setenv("NIGHTSCORE_HOME", str(tmp_path / "stack"))
        settings.cache_clear()
        made = LocalStack(tmp_path / "stack")
        try:
            made.up(("s3",))
            made.supervisor.stop("s3")
            old = known_ports(made.layout)["s3"]
            with socket.socket() as taken:
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                taken.bind(("127.0.0.1", old))
                taken.listen()
                made.up(("s3",))
            assert known_ports(made.layout)["s3"] != old
        finally:
            made.down()
            monkeypatch.undo()
            settings.cache_clear()

    def test_a_port_that_was_asked_for_and_is_taken_is_an_error(self, tmp_path, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            monkeypatch.setenv("NIGHTSCORE_S3_PORT", str(port))
            with pytest.raises(ConfigurationError, match=f"Port {port} for s3 is taken"):
                LocalStack(tmp_path / "stack").up(("s3",))

    def test_otherwise_the_next_free_one_is_taken_and_said(self, small):
        old = json.loads((small.layout.conf / "ports.json").read_text())["s3"]
        small.down()
        lines: list[str] = []
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", old))
            taken.listen()
            small.up(("postgres", "s3"), on_message=lines.append)
        new = json.loads((small.layout.conf / "ports.json").read_text())["s3"]
        assert new > old
        assert f"port {old} is taken; s3 listens on {new}" in lines


# Asks once.
IMPATIENT = {"NIGHTSCORE_CONNECT_FOR_S": "0", "NIGHTSCORE_RETRY_FOR_S": "0"}


class TestDoctor:
    """One line for each fault, with what to do."""

    def _wrong(self, home: Path, **variables: str) -> dict[str, str]:
        found = _run("doctor", "--json", home=home, **variables)
        checks = json.loads(found.stdout)
        assert found.returncode == 1
        assert all("\n" not in check["message"] for check in checks)
        return {check["name"]: check["message"] for check in checks if not check["ok"]}

    def test_a_stack_without_mlflow_and_with_wrong_s3_keys(self, small):
        home = small.layout.home
        wrong = self._wrong(home, AWS_SECRET_ACCESS_KEY="x" * 40)
        assert set(wrong) == {"s3", "mlflow", "airflow"}
        assert "correct AWS_SECRET_ACCESS_KEY" in wrong["s3"]
        assert "MLflow cannot be reached at http://127.0.0.1:" in wrong["mlflow"]
        assert "nightscore up" in wrong["mlflow"]
        wrong = self._wrong(home, AWS_ACCESS_KEY_ID="UNKNOWNKEY0123456789")
        assert "correct AWS_ACCESS_KEY_ID" in wrong["s3"]

    def test_postgres_stopped(self, small):
        small.supervisor.stop("postgres")
        wrong = self._wrong(small.layout.home)
        assert "Postgres cannot be reached, nightscore_writer at 127.0.0.1:" in wrong["postgres"]
        assert "s3" not in wrong
        assert small.supervisor.state("postgres")["statename"] == "STOPPED"

    def test_an_address_without_a_port_is_shown_with_the_port_that_is_meant(self, small):
        url = "postgresql+psycopg2://someone:secret@127.0.0.1/nightscore"
        wrong = self._wrong(small.layout.home, NIGHTSCORE_DATABASE_URL=url)
        assert "someone at 127.0.0.1:5432/nightscore" in wrong["postgres"]
        shown = _run("migrate", home=small.layout.home, NIGHTSCORE_OWNER_URL=url, **IMPATIENT)
        assert "127.0.0.1:5432/nightscore" in shown.stderr
        assert "None" not in shown.stderr

    def test_another_stack_on_its_ports_is_named_and_not_the_password(self, small, tmp_path):
        home = tmp_path / "later"
        later = LocalStack(home)
        later.layout.make()
        ports = known_ports(small.layout)
        with socket.socket() as program:
            program.bind(("127.0.0.1", 0))
            program.listen()
            ports["mlflow"] = program.getsockname()[1]
            later.layout.write(later.layout.conf / "ports.json", json.dumps(ports))
            later._write_environment(ports)
            wrong = self._wrong(home)
        for name, service in (("postgres", "postgres"), ("analyst", "postgres"), ("s3", "s3")):
            assert f"the stack in {small.layout.home} answers" in wrong[name]
            assert f"127.0.0.1:{ports[service]}, not this stack ({home})" in wrong[name]
            assert "nightscore up" in wrong[name]
            assert "password" not in wrong[name]
        assert "another program (" in wrong["mlflow"]
        assert "Airflow cannot be reached" in wrong["airflow"]

    def test_a_wrong_configuration_file_and_nothing_at_all(self, tmp_path):
        broken = tmp_path / "nightscore.yaml"
        broken.write_text("storage: nowhere\nstreams: {}\nmodels: {}\n")
        wrong = self._wrong(tmp_path / "none", NIGHTSCORE_CONFIG=str(broken))
        assert "is not of the form s3://BUCKET/PREFIX" in wrong["configuration"]
        assert "NIGHTSCORE_DATABASE_URL is not set" in wrong["postgres"]
