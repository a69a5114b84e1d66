"""Small nights in Postgres for the tests of retention: runs, images, manifests, results."""

import uuid
from datetime import date, timedelta

import sqlalchemy as sa

from ml.database.connection import engine, engine_for, transaction
from ml.database.tables import ScoringRun, ScoringRunModel
from ml.settings import settings

MODEL = "retention-detector"
TABLES = ("manifest", "prediction", "rejection", "image")

_FILL = """
WITH images AS (
    INSERT INTO nightscore.image (night, stream, uri, etag, bytes, modified)
    SELECT :night, :stream, :stream || '/' || :run_id || '/' || n, 'x', 1, now()
    FROM generate_series(1, :images) AS n
    RETURNING image_id
), manifest AS (
    INSERT INTO nightscore.manifest (run_id, night, image_id, shard)
    SELECT CAST(:run_id AS uuid), :night, image_id, 0 FROM images
), rejected AS (
    INSERT INTO nightscore.rejection (night, image_id, model, version, run_id, reason)
    SELECT :night, max(image_id), :model, 1, CAST(:run_id AS uuid), 'truncated' FROM images
)
INSERT INTO nightscore.prediction (night, image_id, model, version, run_id, predicted_class, score, threshold)
SELECT :night, image_id, :model, 1, CAST(:run_id AS uuid), 'normal', 0.1, 0.5
FROM images
WHERE image_id <> (SELECT max(image_id) FROM images)
"""


def add(
    stream: str, night: date, *, images: int = 3, status: str = "finished", lookback: int = 0
) -> uuid.UUID:
    """Add a run with images, of which the last is rejected; returns the run."""
    run_id = uuid.uuid4()
    with transaction() as session:
        session.add(
            ScoringRun(
                run_id=run_id, trigger=str(run_id), stream=stream, night=night, status=status,
                lookback_from=night - timedelta(days=lookback), max_rejected_share=0.5, shard_size=10,
            )
        )  # fmt: skip
        session.flush()
        session.add(ScoringRunModel(run_id=run_id, model=MODEL, version=1))
    if images:
        with transaction() as session:
            session.execute(sa.select(sa.func.nightscore.ensure_night(night)))
        with transaction() as session:
            values = {"night": night, "stream": stream, "run_id": str(run_id), "images": images}
            session.execute(sa.text(_FILL), values | {"model": MODEL})
    return run_id


def left(first: date, last: date) -> dict[str, set[tuple[str, date]]]:
    """Table → the streams and nights with rows between two nights."""
    names = {
        "image": "SELECT DISTINCT stream, night FROM nightscore.image WHERE night BETWEEN :first AND :last",
    }
    for table in ("manifest", "prediction", "rejection"):
        names[table] = (
            f"SELECT DISTINCT run.stream, x.night FROM nightscore.{table} AS x"
            " JOIN nightscore.scoring_run AS run USING (run_id) WHERE x.night BETWEEN :first AND :last"
        )
    with engine().connect() as connection:
        return {
            table: {
                tuple(row)
                for row in connection.execute(sa.text(query), {"first": first, "last": last})
            }
            for table, query in names.items()
        }


def partitions(first: date, last: date) -> set[str]:
    """The names of the tables of these nights, whether attached or not."""
    with engine().connect() as connection:
        names = connection.scalars(
            sa.text(
                "SELECT relname FROM pg_class WHERE relnamespace = 'nightscore'::regnamespace"
                " AND relkind = 'r' AND relname ~ '_[0-9]{8}$'"
                " AND to_date(right(relname, 8), 'YYYYMMDD') BETWEEN :first AND :last"
            ),
            {"first": first, "last": last},
        )
        return set(names)


def remove(first: date, last: date) -> None:
    """Remove all that is left of these nights, and close their runs."""
    names = partitions(first, last)
    with engine_for(settings().require_owner_url()).begin() as connection:
        for name in names:
            connection.exec_driver_sql(f"DROP TABLE nightscore.{name}")
        connection.execute(
            sa.text(
                "UPDATE nightscore.scoring_run SET status = 'failed'"
                " WHERE status = 'open' AND night BETWEEN :first AND :last"
            ),
            {"first": first, "last": last},
        )
