"""A server whose lock table is too small for the partitions: foreseen, and named when it is met."""

import signal
import subprocess
import time
from collections.abc import Iterator

import psycopg2
import pytest
import sqlalchemy as sa

from ml.database import lock_table
from ml.database.connection import engine_for
from ml.errors import ServiceError
from ml.stack import postgres
from ml.stack.layout import HOST, Layout
from tests.support import stacks

NIGHTS = 600
SETTINGS = {
    "max_locks_per_transaction": 10, "max_connections": 5, "superuser_reserved_connections": 0,
    "max_worker_processes": 0, "max_wal_senders": 0, "autovacuum": "off", "fsync": "off",
    "unix_socket_directories": "", "listen_addresses": HOST,
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """A server with a lock table of the least size and `NIGHTS` partitions."""
    layout = Layout(tmp_path_factory.mktemp("lock-table") / "stack")
    layout.make()
    postgres.initialise(layout)
    port = stacks.ports()["postgres"]
    options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    server = postgres.process(layout, port)
    command = [*server.command, *options]  # the last value of an option is the one that counts
    with (layout.logs / "server.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        while not server.is_ready():
            assert process.poll() is None, (layout.logs / "server.log").read_text()
            time.sleep(0.05)
        password = layout.passwords["postgres"]
        _make_partitions(port, password)
        yield f"postgresql+psycopg2://postgres:{password}@{HOST}:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # ends the sessions, too
        process.wait()


def _make_partitions(port: int, password: str) -> None:
    session = psycopg2.connect(host=HOST, port=port, user="postgres", password=password)
    session.autocommit = True
    cursor = session.cursor()
    cursor.execute(
        "CREATE SCHEMA nightscore;"
        "CREATE TABLE nightscore.image (night date PRIMARY KEY) PARTITION BY RANGE (night)"
    )
    for first in range(0, NIGHTS, 20):  # few locks in each transaction
        cursor.execute(
            f"""
            DO $$ BEGIN FOR i IN {first} .. {first + 19} LOOP
                EXECUTE format(
                    'CREATE TABLE nightscore.image_%s PARTITION OF nightscore.image
                     FOR VALUES FROM (%L) TO (%L)',
                    to_char(date '2026-01-01' + i, 'YYYYMMDD'),
                    date '2026-01-01' + i, date '2026-01-02' + i);
            END LOOP; END $$
            """
        )
    session.close()


def test_a_full_lock_table_is_named_with_the_setting_that_cures_it(url):
    with engine_for(url).connect() as connection, pytest.raises(ServiceError) as caught:
        connection.execute(sa.text("SELECT count(*) FROM nightscore.image"))
    assert "lock table of Postgres is full" in str(caught.value)
    assert "max_locks_per_transaction" in caught.value.hint
    assert "doctor" in caught.value.hint


def test_a_statement_that_names_its_night_still_runs(url):
    night = "SELECT count(*) FROM nightscore.image WHERE night = '2026-01-05'"
    with engine_for(url).connect() as connection:
        assert connection.scalar(sa.text(night)) == 0


def test_the_room_is_compared_with_the_partitions_before_anything_fails(url):
    with engine_for(url).connect() as connection:
        table = lock_table.read(connection)
    assert table.slots == 10 * 5
    assert (table.nights, table.tables, table.relations) == (
        NIGHTS, NIGHTS + 1, 2 * (NIGHTS + 1)
    )  # fmt: skip
    assert not table.is_enough
    assert table.advised * table.transactions >= 2 * table.needed
