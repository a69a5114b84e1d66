"""docker/compose.yaml and its secrets, as far as they can be judged without a daemon."""

import json
import re
import shutil
import stat
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from airflow.sdk import Connection
from nightscore_connections import _SERVICES as SERVICES_OF_CONNECTIONS
from nightscore_connections import ANALYST, MAINTAINER, MLFLOW, POSTGRES, S3

from ml.config.loading import load
from ml.settings import Settings, environment_variables

DOCKER = Path(__file__).parents[3] / "docker"
FILE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES = FILE["services"]
JOBS = {name for name, service in SERVICES.items() if service["restart"] == "on-failure"}
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("nightscore/")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A copy of docker/ whose secrets are drawn."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DOCKER, root / "docker", ignore=shutil.ignore_patterns("secrets", "config"))
    shutil.copy(DOCKER.parent / "nightscore.yaml", root)
    subprocess.run([root / "docker" / "make-secrets.sh"], check=True)
    return root / "docker"


def test_there_is_a_file_for_each_secret_and_no_value_is_in_the_file_itself(drawn):
    files = {name: Path(each["file"]) for name, each in FILE["secrets"].items()}
    assert all((drawn / path).stat().st_size for path in files.values())
    text = (DOCKER / "compose.yaml").read_text()
    assert not re.search(r"(?i)(password|secret|key)\w*: [\"']?\w{6,}$", text, re.MULTILINE)
    mounted = {each if isinstance(each, str) else each["source"]
               for service in SERVICES.values() for each in service.get("secrets", [])}  # fmt: skip
    assert mounted == set(files)


def test_others_cannot_pass_through_the_folder_and_a_second_run_keeps_what_was_drawn(drawn):
    folder = drawn / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    subprocess.run([drawn / "make-secrets.sh"], check=True)
    after = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert before == after
    values = [path.read_text().strip() for path in (folder / "drawn").iterdir()]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 40


def test_a_deleted_secret_is_drawn_anew_wherever_it_is_used(drawn):
    path = drawn / "secrets" / "drawn" / "writer"
    old = path.read_text()
    path.unlink()
    subprocess.run([drawn / "make-secrets.sh"], check=True)
    texts = [each.read_text() for each in (drawn / "secrets").glob("*") if each.is_file()]
    assert not any(old in text for text in texts)
    assert sum(path.read_text() in text for text in texts) == 4  # roles, tasks, jobs, operator


def test_the_files_can_be_read_by_what_reads_them(drawn):
    secrets = drawn / "secrets"
    for path in secrets.glob("*.json"):
        json.loads(path.read_text())
    users = ConfigParser(interpolation=None)
    users.read(secrets / "mlflow_auth.ini")
    assert users["mlflow"]["admin_password"] == (secrets / "drawn" / "mlflow").read_text()
    from cryptography.fernet import Fernet

    Fernet((secrets / "airflow_fernet_key").read_text().strip())


@pytest.mark.parametrize(
    ("file", "names"),
    [("worker", (POSTGRES, MAINTAINER, S3, MLFLOW)), ("pages", (ANALYST, S3))],
)
def test_the_connections_are_such_as_tasks_and_pages_read(drawn, monkeypatch, file, names):
    document = json.loads((drawn / "secrets" / f"{file}_connections.json").read_text())
    assert set(document) == set(names)
    for variable in environment_variables():
        monkeypatch.delenv(variable, raising=False)
    for name, fields in document.items():
        connection = Connection(conn_id=name, **fields | {"extra": json.dumps(fields["extra"])})
        for variable, value in SERVICES_OF_CONNECTIONS[name].convert(connection).items():
            monkeypatch.setenv(variable, value)
    settings = Settings()
    role = "analyst" if file == "pages" else "writer"
    password = (drawn / "secrets" / "drawn" / role).read_text()
    url = settings.analyst_url if file == "pages" else settings.database_url
    assert url.get_secret_value() == (
        f"postgresql+psycopg2://nightscore_{role}:{password}@postgres:5432/nightscore"
    )
    assert settings.s3_endpoint == "http://s3:8333"
    assert settings.mlflow_uri == ("" if file == "pages" else "http://mlflow:5000")


def test_the_configuration_is_the_repository_s_with_queues_of_its_own(drawn):
    ours, theirs = (
        load(drawn / "config" / "nightscore.yaml"),
        load(drawn.parent / "nightscore.yaml"),
    )
    assert (ours.streams, ours.models) == (theirs.streams, theirs.models)
    queues = {each["command"][each["command"].index("--queues") + 1]
              for each in SERVICES.values() if "celery" in each["command"]}  # fmt: skip
    assert {ours.resources.score.queue, ours.resources.retrain.queue} == queues


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_limited_and_comes_back(name):
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["networks"]
    if name != "cli":
        assert service["restart"] == ("on-failure" if name in JOBS else "unless-stopped")
    assert ("healthcheck" in service) == (name not in JOBS | {"cli"})
    if name in OURS:
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_only_the_pages_are_published_and_on_loopback():
    published = {name: each["ports"] for name, each in SERVICES.items() if "ports" in each}
    assert set(published) == {"airflow-api-server", "mlflow"}
    assert all(port.startswith("${PAGES_ADDRESS:-127.0.0.1}:") for (port,) in published.values())
    open_networks = {name for name, each in FILE["networks"].items() if not each.get("internal")}
    assert open_networks == {"pages"}


def test_workers_share_no_network_with_airflow_s_database():
    workers = [each for each in OURS if each.startswith("worker")]
    assert len(workers) == 2
    for name in workers:
        assert not set(SERVICES[name]["networks"]) & set(SERVICES["metadata"]["networks"])
        assert set(SERVICES[name]["networks"]) & set(SERVICES["airflow-api-server"]["networks"])


def test_the_images_and_versions_are_pinned():
    for name, service in SERVICES.items():
        assert re.search(r":(\d|\$\{NIGHTSCORE_VERSION)", service["image"]), name
    default = re.search(r"NIGHTSCORE_VERSION:-(.+?)}", (DOCKER / "compose.yaml").read_text())
    project = (DOCKER.parent / "pyproject.toml").read_text()
    assert f'version = "{default[1]}"' in project
