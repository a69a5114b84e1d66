"""Whether the tables are divided by night or by month: both, with the same rows, measured in turns.

It starts a new Postgres and fills two databases with the project's tables and indexes (`image`,
`manifest`, `prediction`, `rejection`, all four divided by range of `night`): the last nights with
so many images, the others with a few. `python -m benchmarks.scoring.partitions`; decision 0028 has
what it printed.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg2
from psycopg2 import extensions

from ml.settings import settings
from ml.stack import postgres
from ml.stack.layout import HOST, known_ports
from ml.stack.local import LocalStack

TABLES = ("image", "manifest", "prediction", "rejection")
DIVISIONS = ("night", "month")
FEW = 20  # images of an older night
LAST = date(2026, 1, 15)  # in the middle of a month, whose partition has rows already
LOOKBACK = 3
NEWEST = (200, 1_000, 2_000, 5_000, 20_000, 50_000)  # images

# The reconcile statement, with the nights of each table as constants.
RECONCILE = """
SELECT count(*), count(prediction.model), count(rejection.model)
FROM nightscore.manifest
JOIN nightscore.image
    ON image.night = manifest.night AND image.image_id = manifest.image_id
    AND image.night BETWEEN %(first)s AND %(last)s
LEFT JOIN nightscore.prediction
    ON prediction.night = manifest.night AND prediction.image_id = manifest.image_id
    AND prediction.model = 'm' AND prediction.version = 1
    AND prediction.night BETWEEN %(first)s AND %(last)s
LEFT JOIN nightscore.rejection
    ON rejection.night = manifest.night AND rejection.image_id = manifest.image_id
    AND rejection.model = 'm' AND rejection.version = 1
    AND rejection.night BETWEEN %(first)s AND %(last)s
WHERE manifest.run_id = %(run)s AND manifest.night BETWEEN %(first)s AND %(last)s
"""
# What an analyst asks: images, anomalies and mean score by night.
ANALYST = """
SELECT image.night, count(*), count(*) FILTER (WHERE prediction.flagged), avg(prediction.score)
FROM nightscore.image
JOIN nightscore.prediction
    ON prediction.night = image.night AND prediction.image_id = image.image_id
    AND prediction.night BETWEEN %(first)s AND %(last)s
WHERE image.night BETWEEN %(first)s AND %(last)s AND image.stream = 's'
GROUP BY image.night
"""
FLAGGED = """
SELECT count(*) FROM nightscore.prediction
WHERE night BETWEEN %(first)s AND %(last)s AND flagged AND model = 'm'
"""
# What a statement costs that does not name its nights: each partition is planned and locked.
UNBOUNDED = "SELECT count(*) FROM nightscore.prediction WHERE image_id = -1"
INSERTS = (
    """
    INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)
    SELECT %(night)s, 's', 's3://bucket/images/dt=' || %(night)s || '/camera-' || i %% 50
        || '/' || md5(i::text) || '.jpg', md5((i + 1)::text), 20000, now()
    FROM generate_series(1, %(images)s) AS i
    """,
    """
    INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
    SELECT %(run)s, night, image_id, 0 FROM nightscore.image WHERE night = %(night)s
    """,
    """
    INSERT INTO nightscore.prediction
        (night, image_id, model, version, run_id, predicted_class, score, threshold, flagged)
    SELECT night, image_id, 'm', 1, %(run)s, 'normal', random(), 0.99, random() > 0.99
    FROM nightscore.image WHERE night = %(night)s AND image_id %% 200 <> 0
    """,
    """
    INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)
    SELECT night, image_id, 'm', 1, %(run)s, 'undecodable'
    FROM nightscore.image WHERE night = %(night)s AND image_id %% 200 = 0
    """,
)


def run_of(night: date) -> str:
    """The id of the night's run."""
    return str(UUID(int=night.toordinal()))


@dataclass(frozen=True)
class Database:
    """A database whose tables are divided by `division`."""

    division: str
    arguments: dict[str, Any]

    def connect(self) -> extensions.connection:
        """A session in which each statement is a transaction."""
        session = psycopg2.connect(**self.arguments, dbname=f"by_{self.division}")
        session.autocommit = True
        return session

    def bounds(self, night: date) -> tuple[date, date]:
        """The first night of the partition that holds `night`, and the one after its last."""
        if self.division == "night":
            return night, night + timedelta(days=1)
        first = night.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)

    def ensure(self, cursor: extensions.cursor, night: date) -> None:
        """Make the partitions of a night, as `nightscore.ensure_night` does."""
        first, end = self.bounds(night)
        for table in TABLES:
            part = f"nightscore.{table}_{first:%Y%m%d}"
            cursor.execute("SELECT to_regclass(%s) IS NULL", (part,))
            if cursor.fetchone()[0]:  # type: ignore[index]
                cursor.execute(
                    f"CREATE TABLE {part} (LIKE nightscore.{table}"
                    " INCLUDING DEFAULTS INCLUDING CONSTRAINTS);"
                    f"ALTER TABLE nightscore.{table} ATTACH PARTITION {part}"
                    f" FOR VALUES FROM ('{first}') TO ('{end}')"
                )

    def fill(self, cursor: extensions.cursor, night: date, images: int) -> None:
        """Write a scored night."""
        for insert in INSERTS:
            cursor.execute(insert, {"night": night, "images": images, "run": run_of(night)})


def create(arguments: dict[str, Any], nights: int, full: int, images: int) -> list[Database]:
    """Both databases, filled and analysed."""
    administrator = psycopg2.connect(**arguments, dbname="postgres")
    administrator.autocommit = True
    databases = [Database(division, arguments) for division in DIVISIONS]
    for database in databases:
        administrator.cursor().execute(
            f"CREATE DATABASE by_{database.division} TEMPLATE nightscore"
        )
        session = database.connect()
        cursor = session.cursor()
        cursor.execute(
            "DROP TABLE nightscore.manifest CASCADE;"
            "CREATE TABLE nightscore.manifest (run_id uuid NOT NULL, night date NOT NULL,"
            " image_id bigint NOT NULL, shard integer NOT NULL,"
            " PRIMARY KEY (run_id, night, image_id)) PARTITION BY RANGE (night);"
            "CREATE INDEX manifest_by_shard ON nightscore.manifest (run_id, shard)"
        )
        started = time.perf_counter()
        for number in range(nights, 0, -1):
            night = LAST - timedelta(days=number)
            database.ensure(cursor, night)
            database.fill(cursor, night, images if number <= full else FEW)
        print(
            f"by {database.division}: filled in {time.perf_counter() - started:.0f} s", flush=True
        )
        cursor.execute("VACUUM ANALYZE")
        session.close()
    return databases


def session_cost(database: Database, statement: str, first: date, last: date) -> dict[str, float]:
    """A statement in a session of its own: milliseconds the first and the third time, locks, MB."""
    session = database.connect()
    session.autocommit = False
    cursor = session.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    backend = psutil.Process(cursor.fetchone()[0])  # type: ignore[index]
    before = backend.memory_full_info().uss
    parameters = {"first": first, "last": last, "run": run_of(last)}
    times = []
    for _ in range(3):
        started = time.perf_counter()
        cursor.execute(statement, parameters)
        cursor.fetchall()
        times.append(1000 * (time.perf_counter() - started))
    memory = backend.memory_full_info().uss - before
    cursor.execute("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
    locks = cursor.fetchone()[0]  # type: ignore[index]
    session.rollback()
    cursor.execute("EXPLAIN (SUMMARY, FORMAT JSON) " + statement, parameters)
    planning = cursor.fetchone()[0][0]["Planning Time"]  # type: ignore[index]
    session.close()
    return {
        "first_ms": times[0],
        "then_ms": times[-1],
        "planning_ms": planning,
        "locks": locks,
        "memory_mb": memory / 1e6,
    }


def newest_cost(database: Database, night: date, images: int) -> dict[str, float]:
    """Store a night, then milliseconds of reconcile before and after it is analysed.

    Before, Postgres has no statistics of the night: autovacuum comes after a minute or more.
    """
    cursor = database.connect().cursor()
    database.ensure(cursor, night)
    database.fill(cursor, night, images)
    parameters = {"first": night - timedelta(days=LOOKBACK), "last": night, "run": run_of(night)}
    not_analysed = _milliseconds(lambda: cursor.execute(RECONCILE, parameters))
    first, _ = database.bounds(night)
    parts = ", ".join(f"nightscore.{table}_{first:%Y%m%d}" for table in TABLES)
    analyse = _milliseconds(lambda: cursor.execute(f"ANALYZE {parts}"))
    analysed = _milliseconds(lambda: cursor.execute(RECONCILE, parameters))
    return {"not_analysed_ms": not_analysed, "analyse_ms": analyse, "analysed_ms": analysed}


def _milliseconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def ensure_cost(database: Database, night: date) -> float:
    """Milliseconds of making the partitions of a new night, in a new session."""
    session = database.connect()
    session.autocommit = False
    cursor = session.cursor()
    cursor.execute("SELECT 1")
    started = time.perf_counter()
    database.ensure(cursor, night)
    session.commit()
    seconds = time.perf_counter() - started
    session.close()
    return 1000 * seconds


def removal_cost(database: Database, night: date) -> dict[str, float]:
    """Remove a night's rows: its partitions, or the rows of a part of a month, vacuumed."""
    cursor = database.connect().cursor()
    cursor.execute("SELECT pg_current_wal_lsn()")
    wal = cursor.fetchone()[0]  # type: ignore[index]
    started = time.perf_counter()
    for table in TABLES:
        first, _ = database.bounds(night)
        part = f"nightscore.{table}_{first:%Y%m%d}"
        if database.division == "night":
            cursor.execute(f"ALTER TABLE nightscore.{table} DETACH PARTITION {part} CONCURRENTLY")
            cursor.execute(f"DROP TABLE {part}")
        else:
            cursor.execute(f"DELETE FROM {part} WHERE night = %s", (night,))
            cursor.execute(f"VACUUM {part}")
    seconds = time.perf_counter() - started
    cursor.execute("SELECT pg_current_wal_lsn() - %s", (wal,))
    return {"ms": 1000 * seconds, "wal_mb": float(cursor.fetchone()[0]) / 1e6}  # type: ignore[index]


def catalogue(database: Database) -> dict[str, float]:
    """Relations in the schema, megabytes of the system's tables, and a dump of the schema."""
    cursor = database.connect().cursor()
    cursor.execute(
        "SELECT count(*) FILTER (WHERE relnamespace = to_regnamespace('nightscore') AND"
        " relkind = 'r'),"
        " count(*) FILTER (WHERE relnamespace = to_regnamespace('nightscore')),"
        " sum(pg_total_relation_size(oid)) FILTER (WHERE relkind = 'r' AND oid < 16384) / 1e6"
        " FROM pg_class"
    )
    tables, relations, size = cursor.fetchone()  # type: ignore[misc]
    started = time.perf_counter()
    subprocess.run(
        [
            postgres.executable("pg_dump"), "--schema-only", "--file=/dev/null",
            "-h", database.arguments["host"], "-p", str(database.arguments["port"]),
            "-U", "postgres", f"by_{database.division}",
        ],
        check=True,
        env={**os.environ, "PGPASSWORD": database.arguments["password"]},
    )  # fmt: skip
    return {
        "tables": tables,
        "relations": relations,
        "catalogue_mb": float(size),
        "dump_s": time.perf_counter() - started,
    }


def in_turns(
    databases: Sequence[Database], repeat: int, cost: Callable[[Database, int], dict[str, float]]
) -> list[dict[str, str]]:
    """Each database's medians, with the least and the most, of measurements taken in turns."""
    turns: list[list[dict[str, float]]] = [[] for _ in databases]
    for turn in range(repeat):
        for at, database in enumerate(databases):
            turns[at].append(cost(database, turn))
    return [{key: _spread([one[key] for one in costs]) for key in costs[0]} for costs in turns]


def _spread(values: Sequence[float]) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.1f}" if least == most else f"{middle:,.1f} ({least:,.1f} to {most:,.1f})"


def _show(what: str, figures: Sequence[dict[str, Any]]) -> None:
    for division, one in zip(DIVISIONS, figures, strict=True):
        line = ", ".join(f"{key} {value}" for key, value in one.items())
        print(f"{what} | by {division} | {line}", flush=True)


def measure(databases: Sequence[Database], images: int, repeat: int) -> None:
    """Print all figures."""
    before = LAST - timedelta(days=1)
    statements = (
        ("reconcile, 4 nights", RECONCILE, LOOKBACK),
        ("flagged of 1 night", FLAGGED, 0),
        ("analyst, 30 nights", ANALYST, 29),
        ("analyst, 365 nights", ANALYST, 364),
        ("no night named", UNBOUNDED, 0),
    )
    for what, text, days in statements:
        first = before - timedelta(days=days)
        _show(
            what,
            in_turns(
                databases, repeat, lambda one, _, s=text, f=first: session_cost(one, s, f, before)
            ),
        )
    _show("catalogue", in_turns(databases, 3, lambda one, _: catalogue(one)))
    for at, size in enumerate(NEWEST):
        night = LAST + timedelta(days=at)
        _show(
            f"newest night, {size:,} images",
            in_turns(databases, 1, lambda one, _, n=night, i=size: newest_cost(one, n, i)),
        )
    future = LAST + timedelta(days=400)
    _show(
        "new partitions",
        in_turns(
            databases,
            repeat,
            lambda one, turn: {"ms": ensure_cost(one, future + turn * timedelta(days=32))},
        ),
    )
    oldest = LAST - timedelta(days=40)
    _show(
        f"a night of {images:,} removed",
        in_turns(
            databases, 5, lambda one, turn: removal_cost(one, oldest + turn * timedelta(days=1))
        ),
    )


def main() -> None:
    """Fill both databases and print what each costs."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring.partitions", description=__doc__
    )
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--full", type=int, default=40, help="nights that have all their images")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightscore-partitions-") as name:
        os.environ["NIGHTSCORE_HOME"] = name
        settings.cache_clear()
        stack = LocalStack(Path(name))
        try:
            stack.up(("postgres",))
            server = {
                "host": HOST,
                "port": known_ports(stack.layout)["postgres"],
                "user": "postgres",
                "password": stack.layout.passwords["postgres"],
            }
            with suppress(KeyboardInterrupt):
                databases = create(server, arguments.nights, arguments.full, arguments.images)
                measure(databases, arguments.images, arguments.repeat)
        finally:
            stack.down()


if __name__ == "__main__":
    main()
