"""Which images of a night are new: the objects listed in S3 that the tables do not have yet."""

import logging
from collections.abc import Iterable, Iterator
from datetime import date
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.config.schema import Stream
from ml.database.connection import statement, transaction
from ml.database.copying import copy
from ml.database.tables import Manifest
from ml.images.formats import SUFFIXES
from ml.images.rejection import TRANSIENT
from ml.scoring import runs
from ml.storage import nights
from ml.storage.object_store import ObjectInfo, object_store

log = logging.getLogger(__name__)

# Airflow's scheduler slows down above about a thousand mapped tasks. Shards grow instead.
MAX_SHARDS = 500

_LISTING = """
CREATE TEMPORARY TABLE listing (
    night date, uri text, etag text, bytes bigint, modified timestamptz
) ON COMMIT DROP
"""
_COLUMNS = ("night", "uri", "etag", "bytes", "modified")


def discover(run_id: UUID) -> int:
    """Write the run's manifest: the images that it has to score, divided into shards.

    Lists the run's night and the nights that it looks back on. A repetition adds what has arrived
    since; nothing is removed from the manifest.

    Returns:
        The number of images in the manifest.

    Raises:
        DataError: there is no such run.
        ServiceError: Postgres or S3 failed.
    """
    with transaction() as session:
        run = runs.get_run(session, run_id)
        stream = configuration().stream(run.stream)
        session.execute(sa.text(_LISTING))
        copy(session, "listing", _COLUMNS, _list_images(stream, run.night))
        # Without statistics the planner expects a few rows where there may be a million.
        session.execute(sa.text("ANALYZE listing"))
        _ensure_partitions(session)
        session.execute(statement("scoring/sql/discover_images"), {"stream": run.stream})
        session.execute(
            statement("scoring/sql/discover_manifest"),
            {
                "run_id": run_id,
                "stream": run.stream,
                "night": run.night,
                "transient": list(TRANSIENT),
                "shard_size": run.shard_size,
                "max_shards": MAX_SHARDS,
            },
        )
        run.discovered = session.scalar(
            sa.select(sa.func.count()).select_from(Manifest).where(Manifest.run_id == run_id)
        )
        log.info("%s new images in the night %s of %s", run.discovered, run.night, run.stream)
        return run.discovered or 0


def plan_shards(run_id: UUID) -> list[int]:
    """Return the numbers of the run's shards that are not finished, in ascending order."""
    with transaction() as session:
        session.execute(statement("scoring/sql/plan_shards"), {"run_id": run_id})
        return list(session.scalars(statement("scoring/sql/unfinished_shards"), {"run_id": run_id}))


def _list_images(stream: Stream, last_night: date) -> Iterator[tuple[Any, ...]]:
    """The rows of `listing`."""
    for night in nights.lookback(last_night, stream.lookback_nights):
        for page in object_store().list_pages(nights.folder(stream.prefix, night)):
            yield from _image_rows(night, page)


def _image_rows(night: date, page: Iterable[ObjectInfo]) -> Iterator[tuple[Any, ...]]:
    for listed in page:
        if listed.uri.lower().endswith(SUFFIXES):
            yield night, listed.uri, listed.etag, listed.size, listed.modified


def _ensure_partitions(session: Session) -> None:
    """Create the tables' partitions of the listed nights where they are missing."""
    for night in session.scalars(sa.text("SELECT DISTINCT night FROM listing ORDER BY night")):
        session.execute(sa.select(sa.func.nightscore.ensure_night(night)))
