"""A history of release 0.1.0 is migrated while a night is scored, also by a process that is killed.

`make growth ARGS="--migrate 400"` does the same at full size and prints times and locks.
"""

from pathlib import Path

import psycopg2
import pytest

from benchmarks.scoring import migration

VERSIONS = Path(__file__).parents[3] / "ml" / "database" / "migrations" / "versions"
NIGHTS, IMAGES = 12, 200
COUNTS = """
SELECT
    (SELECT count(*) FROM nightscore.image),
    (SELECT count(*) FROM nightscore.manifest),
    (SELECT count(*) FROM nightscore.prediction),
    (SELECT count(*) FROM nightscore.rejection)
"""


@pytest.fixture(scope="module")
def database(store_and_database):
    with migration.server(store_and_database) as database:
        migration.fill(database, NIGHTS, IMAGES)
        yield database


def _query(database: migration.Server, sql: str) -> list[tuple]:
    with psycopg2.connect(database.administrator) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_it_goes_on_where_it_was_killed_and_loses_nothing(database):
    assert _query(database, COUNTS) == [(2400, 2400, 2352, 48)]
    with migration.Writer(database.writer) as writer:
        ended = [
            migration.migrate(database, condition) for condition in (*migration.KILLED_WHEN, None)
        ]
    assert ended[-1]
    assert not all(ended[:-1]), "it was never killed in the middle"
    stored = len(writer.seconds) * migration.IMAGES_PER_SHARD
    assert stored > 0
    assert _query(database, COUNTS) == [(2400 + stored, 2400 + stored, 2352 + stored, 48)]
    assert migration.differences(database) == 0
    assert _query(database, "SELECT sum(images) FROM nightscore.rejection_sum") == [(48,)]
    # No row was moved: the old manifest is a partition as it was.
    (partition,) = _query(
        database,
        "SELECT relname FROM pg_class WHERE relname ~ '^manifest_before_[0-9]{8}$'"
        " AND relispartition",
    )
    assert _query(database, f"SELECT count(*) FROM nightscore.{partition[0]}")[0][0] >= 2400


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("0009_*.sql")), ids=lambda path: path.stem)
def test_a_step_that_is_its_own_transaction_can_be_repeated(database, path):
    """The process may be killed after it, before the revision is recorded."""
    before = _query(database, COUNTS)
    with psycopg2.connect(database.owner) as connection, connection.cursor() as cursor:
        cursor.execute(path.read_text(encoding="utf-8"))
    assert _query(database, COUNTS) == before


def test_repeated_it_changes_nothing(database):
    before = _query(database, COUNTS)
    assert migration.migrate(database)
    assert _query(database, COUNTS) == before
    assert migration.differences(database) == 0
