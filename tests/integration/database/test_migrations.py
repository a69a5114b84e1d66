"""Migrations while others read and write, and a release that meets older or newer tables."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg2.errors import QueryCanceled
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from ml.config.loading import configuration
from ml.database import connection as database
from ml.database import schema
from ml.database.connection import analyst_engine, engine, engine_for, rows
from ml.database.migrate import migrate
from ml.database.migrations import indexes
from ml.errors import ConfigurationError, ServiceError
from ml.scoring import runs
from ml.settings import settings
from ml.stack import postgres
from ml.stack.layout import known_ports
from ml.timeouts import client_limits

SQL_INDEX = (
    "CREATE INDEX IF NOT EXISTS sample_value ON ONLY nightscore.sample (value) WHERE value > 0"
)
PARTITIONS = "sample_20010101", "sample_20010102"
FIRST, LAST, NEW = "2001-01-01", "2001-01-02", "2001-01-03"


_patiently = retry(
    retry=retry_if_result(lambda seen: not seen), stop=stop_after_delay(30), wait=wait_fixed(0.02)
)


def _owner() -> sa.Engine:
    return engine_for(settings().require_owner_url())


def _as_owner(*statements: str) -> None:
    with _owner().begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@pytest.fixture
def impatient(store_and_database, monkeypatch) -> Iterator[None]:
    """Migrations that wait for a lock only briefly."""
    monkeypatch.setenv("NIGHTSCORE_LOCK_TIMEOUT_S", "0.8")
    monkeypatch.setenv("NIGHTSCORE_MIGRATE_FOR_S", "2.5")
    client_limits.cache_clear()
    yield
    monkeypatch.undo()
    client_limits.cache_clear()


@contextmanager
def _in_thread(work: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Do work in a thread; gives what waits for its end, and raises its error."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield lambda: future.result(timeout=60)


@retry(
    retry=retry_if_result(lambda seen: not seen), stop=stop_after_delay(30), wait=wait_fixed(0.02)
)
def _is_waiting(statement: str) -> bool:
    """Wait until a session of the owner that runs a statement is held up by another one."""
    with _owner().connect() as connection:
        waiting = sa.text(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE :statement"
            " AND cardinality(pg_blocking_pids(pid)) > 0 AND pid <> pg_backend_pid())"
        )
        return bool(connection.scalar(waiting, {"statement": f"{statement}%"}))


def test_a_migration_that_is_held_up_names_the_session_and_holds_up_nobody(impatient):
    query = sa.text("SELECT count(*) FROM reporting.nightly_summary")
    with analyst_engine().connect() as holder, _in_thread(migrate) as result:
        holder.execute(query)
        pid = holder.connection.dbapi_connection.info.backend_pid
        _is_waiting("CREATE OR REPLACE VIEW")
        # It stands in the way of the next reader only until its own wait is over.
        with engine().connect() as reader:
            reader.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
            reader.execute(query)
        with pytest.raises(ServiceError, match=f"within 2.5 s.*pid {pid}, role nightscore_analyst"):
            result()


def test_a_migration_goes_on_when_the_lock_is_free(store_and_database):
    with analyst_engine().connect() as holder, _in_thread(migrate) as result:
        holder.execute(sa.text("SELECT count(*) FROM reporting.nightly_summary"))
        _is_waiting("CREATE OR REPLACE VIEW")
        holder.rollback()
        result()


def test_a_migration_that_waits_for_another_does_not_hold_up_its_indexes(partitioned, caplog):
    """CREATE INDEX CONCURRENTLY waits for every transaction, also for one that waits for a lock."""
    with _owner().connect().execution_options(isolation_level="AUTOCOMMIT") as other:
        other.detach()
        other.execute(sa.text("SELECT pg_advisory_lock(7310001)"))
        with caplog.at_level("WARNING"), _in_thread(migrate) as result:
            _is_logged(caplog, "Another migration is at work")
            other.exec_driver_sql("SET statement_timeout = '20s'")
            other.exec_driver_sql(
                f"CREATE INDEX CONCURRENTLY ON nightscore.{PARTITIONS[0]} (value)"
            )
            other.close()
            result()


@_patiently
def _is_logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    """Wait until something is logged."""
    return text in caplog.text


def test_the_owner_s_statements_have_no_time_limit(store_and_database):
    from ml.database import migrate as migration

    with migration._session() as connection:
        limits = [
            connection.scalar(sa.text(f"SHOW {name}"))
            for name in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
        ]
    assert limits == ["0", "0", "2s"]


@pytest.fixture
def partitioned(store_and_database) -> Iterator[None]:
    """A partitioned table of which one partition has the remains of an index that failed."""
    _as_owner(
        "CREATE TABLE nightscore.sample (night date, value int) PARTITION BY RANGE (night)",
        *(
            f"CREATE TABLE nightscore.{name} PARTITION OF nightscore.sample"
            f" FOR VALUES FROM ('{night}') TO (date '{night}' + 1)"
            for name, night in zip(PARTITIONS, (FIRST, LAST), strict=True)
        ),
        f"INSERT INTO nightscore.sample SELECT '{FIRST}', n FROM generate_series(1, 1000) AS n",
    )
    yield
    _as_owner("DROP TABLE nightscore.sample")


def _insert(night: str) -> None:
    """Write a row, as a session that does not wait."""
    _as_owner(
        "SET LOCAL lock_timeout = '1s'", f"INSERT INTO nightscore.sample VALUES ('{night}', 1)"
    )


def _build() -> None:
    with _owner().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()
        indexes.build(connection, SQL_INDEX, "nightscore.sample_value")


def test_an_index_of_a_partitioned_table_is_built_while_others_write(partitioned):
    name = f"{PARTITIONS[0]}_sample_value"
    with _owner().connect() as writer:
        writer.exec_driver_sql(f"INSERT INTO nightscore.{PARTITIONS[0]} VALUES ('{FIRST}', 2)")
        _fail_to_build(name)
        with _in_thread(_build) as result:
            _is_waiting("DROP INDEX CONCURRENTLY")
            for night in (FIRST, LAST):
                _insert(night)
            # A night that begins in the middle.
            _as_owner(
                "CREATE TABLE nightscore.sample_20010103 (LIKE nightscore.sample)",
                "ALTER TABLE nightscore.sample ATTACH PARTITION nightscore.sample_20010103"
                f" FOR VALUES FROM ('{NEW}') TO ('2001-01-04')",
            )
            writer.commit()
            result()
    with _owner().connect() as connection:
        assert (
            rows(connection, "database/sql/partitions_to_index", index="nightscore.sample_value")
            == []
        )
        attached = connection.execute(
            sa.text(
                "SELECT indrelid::regclass::text, indisvalid, pg_get_expr(indpred, indrelid) FROM pg_index"
                " WHERE indrelid::regclass::text LIKE 'nightscore.sample%' ORDER BY 1"
            )
        ).all()
    tables = ("sample", *PARTITIONS, "sample_20010103")
    assert attached == [(f"nightscore.{table}", True, "(value > 0)") for table in tables]
    _build()  # nothing is left to do, and nothing is done twice


def _fail_to_build(name: str) -> None:
    """Begin to build the index of the first partition, which a writer holds up, and give up."""
    with _owner().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()
        connection.exec_driver_sql("SET statement_timeout = '200ms'")
        with pytest.raises(ServiceError) as failure:
            connection.exec_driver_sql(
                f"CREATE INDEX CONCURRENTLY {name} ON nightscore.{PARTITIONS[0]} (value)"
            )
        assert isinstance(failure.value.__cause__, QueryCanceled)


@contextmanager
def _at_revision(revision: str) -> Iterator[None]:
    """Let the database be at another revision for a while, and this process not know it yet."""
    update = "UPDATE nightscore.alembic_version SET version_num = '{}'"
    _as_owner(update.format(revision))
    database._require_revision_once.cache_clear()
    try:
        yield
    finally:
        _as_owner(update.format(schema.release_revision()))


def test_the_revision_that_a_release_needs_is_its_newest_migration():
    config = Config()
    config.set_main_option("script_location", "ml/database/migrations")
    assert schema.release_revision() == ScriptDirectory.from_config(config).get_current_head()


def test_a_run_is_not_opened_on_older_tables(store_and_database):
    needed = schema.release_revision()
    with (
        _at_revision("0001"),
        pytest.raises(
            ConfigurationError, match=f"at revision 0001.* needs {needed}.*nightscore migrate"
        ),
    ):
        runs.open_run(next(iter(configuration().streams)), date(2001, 1, 1))
    with engine().connect():  # migrated meanwhile: the same process goes on
        pass


def test_newer_tables_are_used(store_and_database):
    with _at_revision("9999"), engine().connect() as connection:
        assert schema.database_revision(connection) == "9999"


def test_a_database_without_tables_is_named(store_and_database):
    layout = store_and_database.layout
    url = postgres.url(layout, known_ports(layout)["postgres"], "mlflow", "mlflow")
    with (
        sa.create_engine(url, poolclass=sa.NullPool).connect() as connection,
        pytest.raises(ConfigurationError, match="is without tables"),
    ):
        schema.require_revision(connection)
