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
from ml.database.connection import rows, statement, transaction
from ml.database.copying import copy
from ml.database.partitions import analyze_nights, ensure_nights
from ml.images.formats import SUFFIXES
from ml.images.rejection import TRANSIENT
from ml.scoring import runs
from ml.scoring.cameras import Cameras
from ml.storage import nights
from ml.storage.object_store import ObjectInfo, object_store

log = logging.getLogger(__name__)

# Airflow's scheduler slows down above about a thousand mapped tasks. Shards grow instead.
MAX_SHARDS = 500

_LISTING = """
CREATE TEMPORARY TABLE listing (
    night date, uri text, etag text, bytes bigint, modified timestamptz, camera integer
) ON COMMIT DROP
"""
_COLUMNS = ("night", "uri", "etag", "bytes", "modified", "camera")
_NIGHTS = sa.text("SELECT DISTINCT night FROM listing ORDER BY night")


def discover(run_id: UUID) -> int:
    """Write the run's manifest: the images that it has to score, divided into shards.

    Lists the run's night and the nights that it looks back on. A repetition adds what has arrived
    since; nothing is removed from the manifest.

    Returns:
        The number of images in the manifest.

    Raises:
        DataError: there is no such run, or the stream has too many cameras.
        ServiceError: Postgres or S3 failed.
    """
    with transaction() as session:
        run = runs.get_run(session, run_id)
        stream, night, shard_size = run.stream, run.night, run.shard_size
        nights_of_run = runs.nights(run)
    # The listing may take minutes; until its end this transaction locks a temporary table only.
    with transaction() as session:
        cameras = Cameras(stream, configuration().stream(stream))
        listed = _store_listing(session, configuration().stream(stream), night, cameras)
        ensure_nights(listed)
        session.execute(
            statement("scoring/sql/discover_images"),
            {"stream": stream, "nights": listed, "camera_ids": cameras.ids()},
        )
        session.execute(
            statement("scoring/sql/discover_manifest"),
            {
                "run_id": run_id,
                "stream": stream,
                "night": night,
                "nights": listed,
                "transient": list(TRANSIENT),
                "shard_size": shard_size,
                "max_shards": MAX_SHARDS,
            },
        )
        (manifest,) = rows(
            session, "scoring/sql/count_manifest", run_id=run_id, nights=nights_of_run
        )
        discovered: int = manifest["discovered"]
        run = runs.get_run(session, run_id)
        run.discovered, run.synthetic = discovered, manifest["synthetic"]
    analyze_nights(listed, ("image", "manifest"))
    cameras.warn_of_unnamed()
    log.info("%s new images in the night %s of %s", discovered, night, stream)
    return discovered


def plan_shards(run_id: UUID) -> list[int]:
    """Return the numbers of the run's shards that are not finished, in ascending order."""
    with transaction() as session:
        run = runs.get_run(session, run_id)
        session.execute(
            statement("scoring/sql/plan_shards"), {"run_id": run_id, "nights": runs.nights(run)}
        )
        return list(session.scalars(statement("scoring/sql/unfinished_shards"), {"run_id": run_id}))


def _store_listing(
    session: Session, stream: Stream, last_night: date, cameras: Cameras
) -> list[date]:
    """Copy what is listed into the temporary table `listing`; returns the nights with images."""
    session.execute(sa.text(_LISTING))
    copy(session, "listing", _COLUMNS, _list_images(stream, last_night, cameras))
    # Without statistics the planner expects a few rows where there may be a million.
    session.execute(sa.text("ANALYZE listing"))
    return list(session.scalars(_NIGHTS))


def _list_images(stream: Stream, last_night: date, cameras: Cameras) -> Iterator[tuple[Any, ...]]:
    """The rows of `listing`."""
    for night in nights.lookback(last_night, stream.lookback_nights):
        for page in object_store().list_pages(nights.folder(stream.prefix, night)):
            yield from _image_rows(night, page, cameras)


def _image_rows(
    night: date, page: Iterable[ObjectInfo], cameras: Cameras
) -> Iterator[tuple[Any, ...]]:
    images = [image for image in page if image.uri.lower().endswith(SUFFIXES)]
    numbers = cameras.assign([image.uri for image in images])
    for image, number in zip(images, numbers, strict=True):
        yield night, image.uri, image.etag, image.size, image.modified, number
