"""Which images of a night are new: the listing of S3 less what the tables already hold."""

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
from ml.scoring import run as runs
from ml.storage import nights
from ml.storage.object_store import ObjectInfo, object_store

log = logging.getLogger(__name__)

# Above about a thousand mapped tasks Airflow's scheduler slows down; shards grow instead.
MAX_SHARDS = 500

_LISTING = """
CREATE TEMPORARY TABLE listing (
    night date, uri text, etag text, bytes bigint, modified timestamptz
) ON COMMIT DROP
"""
_COLUMNS = ("night", "uri", "etag", "bytes", "modified")


def discover(run_id: UUID) -> int:
    """Write the run's manifest: the images it has to score, cut into shards.

    Lists the run's night and the nights it looks back on. Run again, it adds what is new since;
    nothing that is in the manifest leaves it.

    Returns:
        The number of images in the manifest.
    """
    with transaction() as session:
        run = runs.get(session, run_id)
        stream = configuration().stream(run.stream)
        session.execute(sa.text(_LISTING))
        copy(session, "listing", _COLUMNS, _listed(stream, run.night))
        # Without statistics the planner takes a million rows for a few.
        session.execute(sa.text("ANALYZE listing"))
        _ensure_nights(session)
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
    """The numbers of the shards that are still to score, in order."""
    with transaction() as session:
        session.execute(statement("scoring/sql/plan_shards"), {"run_id": run_id})
        return list(session.scalars(statement("scoring/sql/unfinished_shards"), {"run_id": run_id}))


def _listed(stream: Stream, night: date) -> Iterator[tuple[Any, ...]]:
    for one in nights.lookback(night, stream.lookback_nights):
        for page in object_store().list_pages(nights.folder(stream.prefix, one)):
            yield from _image_rows(one, page)


def _image_rows(night: date, page: Iterable[ObjectInfo]) -> Iterator[tuple[Any, ...]]:
    for found in page:
        if found.uri.lower().endswith(SUFFIXES):
            yield night, found.uri, found.etag, found.size, found.modified


def _ensure_nights(session: Session) -> None:
    for night in session.scalars(sa.text("SELECT DISTINCT night FROM listing ORDER BY night")):
        session.execute(sa.select(sa.func.nightscore.ensure_night(night)))
