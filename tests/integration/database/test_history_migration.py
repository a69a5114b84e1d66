"""A history of release 0.1.0 is migrated while a night is scored, also by a process that is killed.

`make growth ARGS="--migrate 400"` does the same at full size and prints times and locks.
"""

import psycopg2
import pytest

from benchmarks.scoring import migration

NIGHTS, IMAGES = 12, 200
COUNTS = """
SELECT
    (SELECT count(*) FROM nightscore.image),
    (SELECT count(*) FROM nightscore.manifest),
    (SELECT count(*) FROM nightscore.prediction),
    (SELECT count(*) FROM nightscore.rejection)
"""


@pytest.fixture(scope="module")
def made(store_and_database):
    with migration.server(store_and_database) as made:
        migration.fill(made, NIGHTS, IMAGES)
        yield made


def _query(made: migration.Server, sql: str) -> list[tuple]:
    with psycopg2.connect(made.administrator) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_it_goes_on_where_it_was_killed_and_loses_nothing(made):
    assert _query(made, COUNTS) == [(2400, 2400, 2352, 48)]
    with migration.Writer(made.writer) as writer:
        ended = [migration.migrate(made, condition) for condition in (*migration.KILLED_WHEN, None)]
    assert ended[-1]
    assert not all(ended[:-1]), "it was never killed in the middle"
    stored = len(writer.seconds) * migration.IMAGES_PER_SHARD
    assert stored > 0
    assert _query(made, COUNTS) == [(2400 + stored, 2400 + stored, 2352 + stored, 48)]
    assert migration.differences(made) == 0
    assert _query(made, "SELECT sum(images) FROM nightscore.rejection_sum") == [(48,)]
    # No row was moved: the old manifest is a partition as it was.
    (partition,) = _query(
        made,
        "SELECT relname FROM pg_class WHERE relname ~ '^manifest_before_[0-9]{8}$'"
        " AND relispartition",
    )
    assert _query(made, f"SELECT count(*) FROM nightscore.{partition[0]}")[0][0] >= 2400


def test_repeated_it_changes_nothing(made):
    before = _query(made, COUNTS)
    assert migration.migrate(made)
    assert _query(made, COUNTS) == before
    assert migration.differences(made) == 0
