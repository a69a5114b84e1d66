"""What it takes to migrate a long history of 0.1.0, and whom that holds up.

A new Postgres gets a database as release 0.1.0 has left it after so many nights. Then today's
migrations run, in a process that is killed twice and started again, while another connection stores
the shards of a night one after the other. Printed are the time of the migration, the longest time
that it held a lock which others wait for, and how long a shard took before and meanwhile. In the
end, the sums have to agree with the rows.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from types import TracebackType

import psycopg2
import sqlalchemy as sa

from benchmarks import machine
from benchmarks.paths import REPOSITORY
from ml.database.connection import statement
from ml.scoring import results
from ml.stack.local import LocalStack

RELEASE = "0006"  # the newest migration of 0.1.0
DATABASE = "history"
STREAM = "line"
LAST = date(2026, 1, 31)
IMAGES_PER_SHARD = 500
# What the roles may do in a new database, as ml.database.roles says it of Nightscore's own.
_CONNECT = "GRANT CONNECT, TEMPORARY ON DATABASE history TO nightscore_writer"
_VERSION = """
INSERT INTO nightscore.model_version (
    model, version, task, mlflow_run_id, program_sha256, snapshot_uri, metrics, classes,
    reference_edges, reference_shares, synthetic, gate_passed, gate_reason
) VALUES (
    'history', 1, 'anomaly', '', '', '', '{}', '{normal,anomalous}',
    '{0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9}', '{0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1}',
    true, true, ''
)
"""
_RUN = """
INSERT INTO nightscore.scoring_run (
    run_id, trigger, stream, night, status, lookback_from, max_rejected_share, shard_size
) VALUES (%(run)s, %(run)s, 'line', %(night)s, %(status)s, %(first)s, 0.5, 50000)
"""
# One image in fifty is rejected, and one in a hundred flagged.
_NIGHT = """
INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)
SELECT
    %(night)s, 'line', 's3://bucket/line/dt=' || %(night)s || '/' || n || '.jpg', md5(n::text),
    1000, now()
FROM generate_series(1, %(images)s) AS n;
INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
SELECT %(run)s, night, image_id, 0 FROM nightscore.image WHERE night = %(night)s;
INSERT INTO nightscore.prediction (
    night, image_id, model, version, run_id, predicted_class, score, threshold, flagged
)
SELECT night, image_id, 'history', 1, %(run)s, 'normal', random(), 0.99, image_id %% 100 = 0
FROM nightscore.image WHERE night = %(night)s AND image_id %% 50 <> 7;
INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)
SELECT night, image_id, 'history', 1, %(run)s, 'truncated'
FROM nightscore.image WHERE night = %(night)s AND image_id %% 50 = 7;
"""
_SHARD = """
WITH added AS (
    INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)
    SELECT %(night)s, 'line', 's3://bucket/line/now/' || %(shard)s || '/' || n, '', 1, now()
    FROM generate_series(1, %(images)s) AS n
    RETURNING night, image_id
),
listed AS (
    INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
    SELECT %(run)s, night, image_id, %(shard)s FROM added
)
INSERT INTO staged_prediction
SELECT night, image_id, 'history', 1, 'normal', NULL, random(), 0.99, false, NULL, NULL, false
FROM added
"""
_DIFFERENCES = """
SELECT count(*) FROM (
    SELECT night, run_id, count(*) AS images, count(*) FILTER (WHERE flagged) AS flagged
    FROM nightscore.prediction GROUP BY night, run_id
) AS counted
FULL JOIN (
    SELECT night, run_id, sum(images) AS images, sum(flagged) AS flagged
    FROM nightscore.class_sum GROUP BY night, run_id
) AS summed USING (night, run_id)
WHERE counted.images IS DISTINCT FROM summed.images
    OR counted.flagged IS DISTINCT FROM summed.flagged
"""
# While the manifest is divided, and when part of the sums is computed.
KILLED_WHEN = (
    "EXISTS (SELECT FROM nightscore.alembic_version WHERE version_num = '0008')",
    "(SELECT count(*) > 5 FROM nightscore.summed_night)",
)
# What the migration holds that conflicts with what readers or writers take.
_HELD = """
SELECT pg_locks.relation, pg_locks.mode
FROM pg_locks
JOIN pg_stat_activity AS activity USING (pid)
JOIN pg_class ON pg_class.oid = pg_locks.relation
WHERE activity.usename = 'nightscore_owner'
    AND activity.datname = %s
    AND pg_locks.granted
    AND pg_class.relkind IN ('r', 'p')
    AND pg_class.relnamespace = 'nightscore'::regnamespace
    AND pg_locks.mode IN (
        'AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock'
    )
"""


@dataclass(frozen=True)
class Server:
    """A Postgres with a database of 0.1.0.

    Attributes:
        owner: The URL of the tables' owner.
        writer: The URL of the writer.
        administrator: The URL of the superuser.
    """

    owner: str
    writer: str
    administrator: str

    def environment(self) -> dict[str, str]:
        """Return the variables with which our commands find the database."""
        return {
            **os.environ,
            "NIGHTSCORE_OWNER_URL": _with_driver(self.owner),
            "NIGHTSCORE_DATABASE_URL": _with_driver(self.writer),
        }


def _with_driver(url: str) -> str:
    """A URL as SQLAlchemy reads it."""
    return url.replace("postgresql:", "postgresql+psycopg2:")


@contextmanager
def server(stack: LocalStack) -> Iterator[Server]:
    """Make a database of 0.1.0 on a running stack's Postgres; it is dropped at the end."""
    from ml.stack.layout import HOST, known_ports

    port, passwords = known_ports(stack.layout)["postgres"], stack.layout.passwords

    def url(role: str, password: str, database: str = DATABASE) -> str:
        return f"postgresql://{role}:{passwords[password]}@{HOST}:{port}/{database}"

    administrator = url("postgres", "postgres", "postgres")
    _execute(administrator, f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    _execute(administrator, f"CREATE DATABASE {DATABASE} OWNER nightscore_owner")
    _execute(administrator, _CONNECT)
    database = Server(
        url("nightscore_owner", "owner"), url("nightscore_writer", "writer"),
        url("postgres", "postgres"),
    )  # fmt: skip
    _release(database)
    yield database
    _execute(administrator, f"DROP DATABASE {DATABASE} WITH (FORCE)")


def _execute(url: str, sql: str, values: dict[str, object] | None = None) -> None:
    """Run a statement in a transaction of its own, or outside of any where it must be."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
    connection.close()


def _release(database: Server) -> None:
    """Make the tables, the views and the grants of 0.1.0."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(REPOSITORY / "ml/database/migrations"))
    engine = sa.create_engine(_with_driver(database.owner), poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE SCHEMA nightscore")
        connection.exec_driver_sql("CREATE SCHEMA reporting")
        connection.commit()
        config.attributes["connection"] = connection
        command.upgrade(config, RELEASE)
        connection.commit()
    views = sorted((REPOSITORY / "tests/upgrade/0.1.0/sql/reporting").iterdir())
    for path in views:
        _execute(database.owner, path.read_text(encoding="utf-8"))
    _execute(
        database.owner,
        "GRANT USAGE ON SCHEMA nightscore, reporting TO nightscore_writer;"
        "GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA nightscore TO nightscore_writer;"
        "GRANT EXECUTE ON FUNCTION nightscore.ensure_night(date) TO nightscore_writer",
    )


def fill(database: Server, nights: int, images: int) -> None:
    """Store nights of the stream, the newest one on `LAST`."""
    _execute(database.owner, _VERSION)
    for number in range(nights):
        night = LAST - timedelta(days=nights - 1 - number)
        run = f"00000000-0000-0000-0000-{number:012}"
        values = {"run": run, "night": night, "images": images, "status": "finished"}
        _execute(database.owner, "SELECT nightscore.ensure_night(%(night)s)", values)
        _execute(database.owner, _RUN, values | {"first": night - timedelta(days=3)})
        _execute(database.owner, _NIGHT, values)


@dataclass
class Writer:
    """Stores shards of a night, one after the other, until it is told to stop.

    Attributes:
        url: The writer's URL.
        seconds: The time of each shard.
    """

    url: str
    seconds: list[float] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Writer":
        self._connection = psycopg2.connect(self.url)
        self._night = LAST + timedelta(days=1)
        self._run = "ffffffff-0000-0000-0000-000000000000"
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(results._STAGING)
            cursor.execute("SELECT nightscore.ensure_night(%s)", [self._night])
            first = self._night - timedelta(days=3)
            values = {"run": self._run, "night": self._night, "first": first, "status": "open"}
            cursor.execute(_RUN, values)
        self._thread = threading.Thread(target=self._store, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._connection.close()
        if self._error is not None:
            raise self._error

    def _store(self) -> None:
        self._error: BaseException | None = None
        merge = statement("scoring/sql/merge_predictions").text.replace(":run_id", "%(run)s")
        try:
            while not self._ended.wait(0.05):
                started = time.monotonic()
                with self._connection, self._connection.cursor() as cursor:
                    values = {
                        "run": self._run, "night": self._night, "shard": len(self.seconds),
                        "images": IMAGES_PER_SHARD,
                    }  # fmt: skip
                    cursor.execute("TRUNCATE staged_prediction")
                    cursor.execute(_SHARD, values)
                    cursor.execute(
                        "SELECT pg_advisory_xact_lock(hashtext('merge'), hashtext('line'))"
                    )
                    cursor.execute(merge, values)
                self.seconds.append(time.monotonic() - started)
        except BaseException as error:
            self._error = error


@dataclass
class LockWatch:
    """Looks every few milliseconds which locks the migration holds that others wait for.

    Attributes:
        url: The superuser's URL.
        longest_s: The longest time that one was held, seconds.
    """

    url: str
    longest_s: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "LockWatch":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        since: dict[tuple[int, str], float] = {}
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not self._ended.wait(0.004):
                now = time.monotonic()
                cursor.execute(_HELD, [DATABASE])
                held = {(relation, mode) for relation, mode in cursor.fetchall()}
                since = {lock: since.get(lock, now) for lock in held}
                self.longest_s = max([self.longest_s, *(now - at for at in since.values())])
        connection.close()


def migrate(database: Server, kill_when: str | None = None) -> bool:
    """Run today's migrations in a process; returns whether they ended.

    Args:
        database: The database.
        kill_when: A condition in SQL. The process is killed once it is true; while it cannot be
            evaluated, it is not.
    """
    command = [sys.executable, "-c", "from ml.database.migrate import migrate; migrate()"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=database.environment())
    while kill_when is not None and process.poll() is None:
        if _is_true(database, kill_when):
            process.kill()
        time.sleep(0.01)
    return process.wait() == 0


def _is_true(database: Server, condition: str) -> bool:
    with psycopg2.connect(database.administrator) as connection, connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT {condition}")
        except psycopg2.errors.UndefinedTable:
            return False
        row = cursor.fetchone()
        return bool(row and row[0])


def differences(database: Server) -> int:
    """Return the number of runs and nights whose sums are not those of their rows."""
    with psycopg2.connect(database.administrator) as connection, connection.cursor() as cursor:
        cursor.execute(_DIFFERENCES)
        row = cursor.fetchone()
    return int(row[0]) if row else -1


def main(nights: int = 400, images: int = 20_000) -> None:
    """Measure, and print what came out.

    Args:
        nights: Nights of history.
        images: Images of each.
    """
    print(machine.describe("cpu"))
    with tempfile.TemporaryDirectory(prefix="nightscore-migration-") as folder:
        Path(folder).chmod(0o755)
        os.environ["NIGHTSCORE_HOME"] = str(Path(folder) / ".nightscore")
        stack = LocalStack(Path(folder) / ".nightscore")
        try:
            stack.up(("postgres",))
            with server(stack) as database:
                fill(database, nights, images)
                print(f"{nights} nights of {images:,} images, as 0.1.0 has left them")
                _measure(database)
        finally:
            stack.down()


def _measure(database: Server) -> None:
    with Writer(database.writer) as writer:
        time.sleep(10)
        before = list(writer.seconds)
        started = time.monotonic()
        with LockWatch(database.administrator) as watch:
            attempts = [migrate(database, condition) for condition in (*KILLED_WHEN, None)]
        seconds = time.monotonic() - started
        meanwhile = writer.seconds[len(before) :]
    killed = len(attempts) - sum(attempts)
    print(f"migrated in {seconds:.0f} s, killed {killed} times and started again")
    print(f"longest lock that others wait for: {watch.longest_s * 1000:.0f} ms")
    for name, times in (("before", before), ("meanwhile", meanwhile)):
        print(
            f"a shard of {IMAGES_PER_SHARD} images {name}: median "
            f"{statistics.median(times) * 1000:.0f} ms, longest {max(times) * 1000:.0f} ms"
        )
    print(f"runs whose sums differ from their rows: {differences(database)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=400)
    parser.add_argument("--images", type=int, default=20_000)
    main(**vars(parser.parse_args()))
