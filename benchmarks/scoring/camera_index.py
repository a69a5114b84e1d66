"""What an index of cameras is worth: one night of images, with none, two B-trees and a BRIN.

`python -m benchmarks.scoring.camera_index --images 1000000`. It starts a new Postgres, fills one
night's partition as discovery does (in the order of the URIs) and asks for one of 50 cameras. Keys
begin with the camera, so that its images lie together, or with the time, so that they lie apart.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import machine
from ml.database.connection import engine_for
from ml.settings import settings
from ml.stack.local import LocalStack

PARTITION = "nightscore.image_20310101"
KEYS = {
    "camera first": "'camera-' || lpad((n % 50)::text, 2, '0') || '/' || lpad(n::text, 9, '0')",
    "time first": "lpad(n::text, 9, '0') || '/camera-' || lpad((n % 50)::text, 2, '0')",
}
INDEXES = {
    "none": None,
    "B-tree": "CREATE INDEX camera_index ON {partition} (camera_id)",
    # Answers a count from the index alone.
    "B-tree with night": "CREATE INDEX camera_index ON {partition} (night, camera_id)",
    "BRIN": "CREATE INDEX camera_index ON {partition} USING brin (camera_id)",
}
STAGE = """
CREATE UNLOGGED TABLE public.listing AS
SELECT 's3://bucket/streams/hall/dt=2031-01-01/' || {key} || '.jpg' AS uri,
    md5(n::text) AS etag, 1 + n % 50 AS camera_id
FROM generate_series(1, {n}) AS n
"""
INSERT = """
INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified, camera_id)
SELECT '2031-01-01', 'hall', uri, etag, 60000, now(), camera_id
FROM public.listing
ORDER BY uri
"""
PREDICT = """
INSERT INTO nightscore.prediction (
    night, image_id, model, version, run_id, predicted_class, score, threshold, flagged
)
SELECT night, image_id, 'moulds', 1, gen_random_uuid(),
    CASE WHEN hashint8(image_id) % 101 = 0 THEN 'anomalous' ELSE 'normal' END,
    0.5, 0.5, hashint8(image_id) % 101 = 0
FROM nightscore.image
WHERE night = '2031-01-01'
"""
SUM = """
INSERT INTO nightscore.class_sum
SELECT prediction.night, '00000000-0000-0000-0000-000000000000', model, version, camera_id,
    predicted_class, count(*), count(*) FILTER (WHERE flagged), 0, 0
FROM nightscore.prediction
JOIN nightscore.image USING (image_id)
WHERE prediction.night = '2031-01-01' AND image.night = '2031-01-01'
GROUP BY prediction.night, model, version, camera_id, predicted_class
"""
QUERIES = {
    "images of a camera": """
        SELECT count(*) FROM nightscore.image WHERE night = '2031-01-01' AND camera_id = 7""",
    "images and flags, joined": """
        SELECT count(*), count(*) FILTER (WHERE flagged)
        FROM nightscore.image
        JOIN nightscore.prediction USING (image_id)
        WHERE image.night = '2031-01-01' AND prediction.night = '2031-01-01' AND camera_id = 7""",
    "100 flagged images": """
        SELECT uri, score
        FROM nightscore.image
        JOIN nightscore.prediction USING (image_id)
        WHERE image.night = '2031-01-01' AND prediction.night = '2031-01-01' AND camera_id = 7
            AND flagged
        ORDER BY score DESC, uri LIMIT 100""",
    "images and flags, from the sums": """
        SELECT sum(images), sum(flagged) FROM nightscore.class_sum
        WHERE night = '2031-01-01' AND camera_id = 7""",
}


@contextmanager
def database() -> Iterator[sa.Connection]:
    """A new Postgres with the project's tables; yields a connection of their owner."""
    with tempfile.TemporaryDirectory(prefix="camera-index-") as folder:
        os.environ["NIGHTSCORE_HOME"] = str(Path(folder) / ".nightscore")
        Path(folder).chmod(0o755)
        settings.cache_clear()
        stack = LocalStack(Path(folder) / ".nightscore")
        try:
            stack.up(("postgres",))
            settings.cache_clear()
            owner = engine_for(settings().require_owner_url())
            with owner.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                yield connection
            owner.dispose()
        finally:
            stack.down()


def measure(connection: sa.Connection, statement: str, repeats: int = 1) -> float:
    """Return the median seconds of a statement."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        connection.exec_driver_sql(statement.replace("%", "%%"))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def create(connection: sa.Connection, index: str) -> float:
    """Replace the index of cameras; returns the seconds that it took."""
    connection.exec_driver_sql("DROP INDEX IF EXISTS nightscore.camera_index")
    definition = INDEXES[index]
    return measure(connection, definition.format(partition=PARTITION)) if definition else 0.0


def insertions(connection: sa.Connection, repeats: int) -> dict[str, float]:
    """Return index → median seconds of an insertion of all images."""
    seconds = {}
    for index in INDEXES:
        times = []
        for _ in range(repeats):
            connection.exec_driver_sql("TRUNCATE nightscore.image, nightscore.prediction")
            create(connection, index)
            times.append(measure(connection, INSERT))
        seconds[index] = statistics.median(times)
    return seconds


def row(*values: Any) -> None:
    """Print a row of a Markdown table."""
    print("|", " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values), "|")


def run(connection: sa.Connection, images: int, layout: str, repeats: int) -> None:
    """Measure one layout of keys and print its tables."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS public.listing")
    connection.exec_driver_sql("SET work_mem = '256MB'")
    connection.exec_driver_sql(STAGE.format(key=KEYS[layout], n=images).replace("%", "%%"))
    connection.exec_driver_sql("SELECT nightscore.ensure_night('2031-01-01')")
    connection.exec_driver_sql("ALTER TABLE nightscore.prediction DISABLE TRIGGER USER")
    seconds = insertions(connection, repeats) if repeats else {}
    if not repeats:
        connection.exec_driver_sql("TRUNCATE nightscore.image, nightscore.prediction")
        seconds = {"none": measure(connection, INSERT)}
    connection.exec_driver_sql(PREDICT.replace("%", "%%"))
    fill_sums(connection)
    connection.exec_driver_sql("VACUUM ANALYZE nightscore.image, nightscore.prediction")
    print(f"\n{images:,} images, {layout}\n")
    row("index", "insertion, s", "creation, s", "size, MB", *(f"{name}, ms" for name in QUERIES))
    row(*["---"] * (4 + len(QUERIES)))
    for index in INDEXES:
        created = create(connection, index)
        connection.exec_driver_sql(f"ANALYZE {PARTITION}")
        size = connection.exec_driver_sql(
            "SELECT coalesce(pg_relation_size(to_regclass('nightscore.camera_index')), 0)"
        ).scalar_one()
        for query in QUERIES.values():
            measure(connection, query)
        times = [1000 * measure(connection, query, 5) for query in QUERIES.values()]
        row(index, seconds.get(index, "-"), created, size / 1e6, *times)
    size = connection.exec_driver_sql(
        f"SELECT pg_relation_size('{PARTITION}'), pg_total_relation_size('{PARTITION}')"
    ).one()
    print(f"\ntable {size[0] / 1e6:,.0f} MB, with its indexes {size[1] / 1e6:,.0f} MB", flush=True)


def fill_sums(connection: sa.Connection) -> None:
    """Store the sums that the triggers, which are off here, would keep."""
    connection.exec_driver_sql("TRUNCATE nightscore.class_sum")
    connection.exec_driver_sql(SUM)


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--layout", choices=KEYS, action="append")
    parser.add_argument(
        "--repeats", type=int, default=3, help="of each insertion; 0: only without an index"
    )
    arguments = parser.parse_args()
    print(machine.describe("cpu"))
    with database() as connection:
        for layout in arguments.layout or KEYS:
            run(connection, arguments.images, layout, arguments.repeats)


if __name__ == "__main__":
    main()
