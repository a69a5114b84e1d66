"""A long history costs nothing: a statement plans, locks and reads the nights that it names.

What a statement has locked tells which partitions Postgres opened to plan and to run it, also within
triggers and functions. `EXPLAIN` alone does not: it leaves out what is pruned only when it runs.
"""

import re
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from ml.config.loading import configuration
from ml.database.connection import analyst_engine, engine, engine_for, statement
from ml.database.sums import sum_night
from ml.scoring import discovery, results, steps
from ml.settings import settings
from ml.storage.nights import night_range
from ml.storage.object_store import object_store
from tests.support import synthetic_images

REPOSITORY = Path(__file__).parents[3]
# Scripts of an administrator or of a migration, which have no plan.
SCRIPTS = {"database/sql/administrator", "database/sql/grants", "database/sql/maintainer"}
STATEMENTS = sorted(
    {
        str(path.relative_to(REPOSITORY / "ml").with_suffix(""))
        for path in (REPOSITORY / "ml").rglob("sql/*.sql")
    }
    - SCRIPTS
)
# The last night is that of the queries in docs/sql.md.
LAST = date(2026, 11, 26)
HISTORY = [LAST - timedelta(days=days) for days in range(60)]
ASKED = HISTORY[:4]
PARAMETERS: dict[str, Any] = {
    "run_id": UUID(int=1),
    "run_ids": [UUID(int=1)],
    "night": ASKED[0],
    "nights": ASKED,
    "stream": "line",
    "streams": ["line"],
    "model": "shades",
    "models": ["shades"],
    "shard": 0,
    "shards": [0],
    "most": 10,
    "transient": ["gone"],
    "shard_size": 10,
    "max_shards": 10,
    "images": 1,
    "seconds": 1.0,
    "device": "cpu",
    "error": "",
    "needed": "0001",
    "pid": 1,
    "after": 0,
    "least_rows": 1,
    "batch": 10,
    # Of the partition with all nights of an old release; no other test has nights as old.
    "next_night": date(1990, 1, 1),
    "partition": "image_20261126",
    "table_name": "image",
    "version": 1,
    "index": "nightscore.prediction_flagged",
    "trigger": "manual",
    "first_night": ASKED[-1],
    "last_night": ASKED[0],
    "uri": "s3://images/line/a.png",
    "etag": "e",
    "image_ids": [1],
    "camera_ids": [1],
    "cameras": ["a"],
    "lines": [""],
    "products": [""],
}
# Statements whose parameter of this name is a number of nights.
COUNTS_NIGHTS = {"monitoring/sql/newest_runs", "monitoring/sql/streams"}
LOCKED = sa.text(
    "SELECT DISTINCT substring(class.relname FROM '^[a-z]+') AS parent,"
    " to_date(right(class.relname, 8), 'YYYYMMDD') AS night"
    " FROM pg_locks JOIN pg_class AS class ON class.oid = pg_locks.relation"
    " WHERE pg_locks.pid = pg_backend_pid()"
    r" AND class.relname ~ '^(image|manifest|prediction|rejection)_\d{8}$'"
)


def _locked_nights(connection: sa.Connection) -> set[date]:
    """The nights of which this session has locked a partition."""
    return {row.night for row in connection.execute(LOCKED)}


@pytest.fixture(scope="module")
def history(store_and_database) -> None:
    """Partitions of sixty nights."""
    with engine().begin() as connection:
        for night in HISTORY:
            connection.execute(sa.select(sa.func.nightscore.ensure_night(night)))


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_locks_the_partitions_of_its_nights_only(history, name):
    url = settings().require_owner_url()
    with engine_for(url).connect() as connection:
        for temporary in (discovery._LISTING, results._STAGING):
            connection.execute(sa.text(temporary))
        text = statement(name).text
        parameters = {key: PARAMETERS[key] for key in statement(name)._bindparams}
        if name in COUNTS_NIGHTS:
            parameters["nights"] = len(ASKED)
        connection.execute(sa.text(f"EXPLAIN {text}"), parameters)
        assert _locked_nights(connection) <= set(ASKED)
        connection.rollback()


def _documented() -> list[str]:
    text = (REPOSITORY / "docs" / "sql.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    return [query.strip() for block in blocks for query in block.split(";") if query.strip()]


@pytest.mark.parametrize("query", _documented())
def test_a_query_of_the_documentation_locks_the_partitions_of_its_nights_only(history, query):
    named = sorted(map(date.fromisoformat, re.findall(r"'(\d{4}-\d\d-\d\d)'", query)))
    asked = set(night_range(named[0], named[-1])) if named else set()
    assert len(asked) in (0, 1, 30)
    with analyst_engine().connect() as connection:
        connection.exec_driver_sql(query, execution_options={"no_parameters": True}).all()
        locked = _locked_nights(connection)
    assert locked <= asked
    if "missing_images" in query or "predictions" in query or "anomalies(" in query:
        assert locked == asked


@pytest.fixture
def statements_of_a_night() -> Iterator[dict[str, set[date]]]:
    """Collects, for each statement that this process executes, the nights that were locked."""
    seen: dict[str, set[date]] = {}

    def watch(connection, cursor, text, parameters, context, executemany):
        if text != str(LOCKED):
            with connection.connection.cursor() as other:
                other.execute(str(LOCKED))
                seen.setdefault(text, set()).update(night for _, night in other.fetchall())

    sa.event.listen(sa.Engine, "after_cursor_execute", watch)
    yield seen
    sa.event.remove(sa.Engine, "after_cursor_execute", watch)


@pytest.fixture(params=[False, True], ids=["without cameras", "with cameras"])
def cameras(request, store_and_database) -> Iterator[bool]:
    """Whether any stream has a camera: then the sums look up the images."""
    owner = engine_for(settings().require_owner_url())
    if request.param:
        with owner.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO nightscore.camera (stream, camera) VALUES ('history', 'one')"
            )
    yield request.param
    with owner.begin() as connection:
        connection.exec_driver_sql("DELETE FROM nightscore.camera WHERE stream = 'history'")


def test_a_night_locks_the_partitions_of_its_nights_only(
    trained, history, cameras, statements_of_a_night
):
    """All that a night does: every statement, every trigger and every function."""
    stream = configuration().stream("both")
    night = HISTORY[10 if cameras else 20]
    good = {f"{n}.png": synthetic_images.shade("dark", 77_000 + n) for n in range(6)}
    for name, content in (good | {"broken.png": b"broken"}).items():
        object_store().put(f"{stream.prefix}/dt={night}/{name}", content)
    counts = steps.score_night("both", night.isoformat())
    assert (counts["scored"], counts["rejected"]) == (6, 1)
    assert sum_night("both", night)
    asked = {night - timedelta(days=days) for days in range(stream.lookback_nights + 1)}
    assert len(asked) < len(HISTORY)
    too_many = {text: nights - asked for text, nights in statements_of_a_night.items()}
    assert {text: nights for text, nights in too_many.items() if nights} == {}
    assert any(night in nights for nights in statements_of_a_night.values())
