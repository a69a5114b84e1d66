"""`nightscore prepare`: a server of one's own gets its roles, databases and buckets.

The server is the local stack's, whose roles get the passwords that they have.
"""

import json
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy as sa

from ml.cli import prepare
from ml.database.roles import MAINTAINER, ROLES
from ml.errors import ConfigurationError, ServiceError
from ml.stack import postgres
from ml.stack.layout import HOST, known_ports
from ml.storage.object_store import object_store
from tests.support.retries import no_retries


@pytest.fixture
def url(store_and_database) -> str:
    port = known_ports(store_and_database.layout)["postgres"]
    return f"postgresql+psycopg2://postgres@{HOST}:{port}/postgres"


@pytest.fixture
def files(store_and_database, tmp_path):
    """The passwords of some roles, and the administrator's, as files."""

    def write(*roles: str, **other: str):
        own = store_and_database.layout.passwords
        known = {role: own[postgres.ROLES[role]] for role in roles}
        (tmp_path / "roles.json").write_text(json.dumps(known | other))
        (tmp_path / "administrator").write_text(own["postgres"] + "\n")
        return tmp_path / "roles.json", tmp_path / "administrator"

    return write


def test_it_is_safe_to_repeat_and_sets_the_passwords(url, files, store_and_database):
    roles, administrator = files(*ROLES)
    prepare.postgres(roles, url, administrator)
    changed, _ = files(*(role for role in ROLES if role != "mlflow"), mlflow="another")
    prepare.postgres(changed, url, administrator)
    port = known_ports(store_and_database.layout)["postgres"]
    try:
        login = {"host": HOST, "port": port, "user": "mlflow", "dbname": "mlflow"}
        psycopg2.connect(**login, password="another").close()
    finally:
        prepare.postgres(files(*ROLES)[0], url, administrator)
    with pytest.raises(psycopg2.OperationalError, match="authentication failed"):
        psycopg2.connect(**login, password="another")


def test_a_server_for_airflow_alone_needs_no_other_role(url, files):
    passwords, administrator = files("airflow")
    before = _hashes(url, administrator)
    prepare.postgres(passwords, url, administrator)
    after = _hashes(url, administrator)
    # Each password is hashed with a new salt.
    assert {role for role, hashed in after.items() if before[role] != hashed} == {"airflow"}


def test_an_installation_without_a_maintainer_is_prepared_as_before(url, files):
    passwords, administrator = files(*(role for role in ROLES if role != MAINTAINER))
    before = _hashes(url, administrator)
    prepare.postgres(passwords, url, administrator)
    after = _hashes(url, administrator)
    assert {role for role in ROLES if before[role] == after[role]} == {MAINTAINER}


def _hashes(url: str, administrator: Path) -> dict[str, str]:
    """Role → the hash of its password."""
    address = sa.make_url(url).set(password=administrator.read_text().strip())
    with sa.create_engine(address, poolclass=sa.NullPool).connect() as connection:
        rows = connection.execute(sa.text("SELECT rolname, rolpassword FROM pg_authid"))
        return {role: hashed for role, hashed in rows if role in ROLES}


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"nightscore_ower": "x"}, "no role 'nightscore_ower'"),
        ({"nightscore_owner": "x", "nightscore_writer": "x"}, "needs the role nightscore_analyst"),
        (["airflow"], "is no JSON object"),
        ({"airflow": ""}, "is no JSON object"),
    ],
)
def test_a_wrong_file_of_passwords_changes_nothing_and_says_why(tmp_path, url, roles, message):
    path = tmp_path / "roles.json"
    path.write_text(json.dumps(roles))
    with pytest.raises(ConfigurationError, match=message):
        prepare.postgres(path, url)


def test_what_cannot_be_read_or_reached_is_named(tmp_path, url, files):
    roles, _ = files("airflow")
    with pytest.raises(ConfigurationError, match=r"missing\.json cannot be read"):
        prepare.postgres(tmp_path / "missing.json", url)
    with pytest.raises(ConfigurationError, match="URL cannot be read"):
        prepare.postgres(roles, "not a URL")
    with no_retries(), pytest.raises(ServiceError, match="postgres"):
        prepare.postgres(roles, url)  # without a password


def test_missing_buckets_are_made_and_others_are_left_alone(bucket):
    object_store().put(f"{bucket}/kept", b"1")
    prepare.buckets(["nightscore", "test-prepared"])
    prepare.buckets(["nightscore", "test-prepared"])
    assert object_store().get(f"{bucket}/kept")[0] == b"1"
    object_store().put("s3://test-prepared/new", b"2")
