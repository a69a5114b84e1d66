"""The report of one scoring run: images that were flagged, marked for review or rejected.

The report is a single HTML page without scripts or references to other files; its pictures are
embedded.
"""

import base64
import io
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.config.schema import MAX_PIXELS
from ml.database.connection import analyst_engine, rows, transaction
from ml.database.tables import FINISHED, ScoringRun
from ml.errors import DataError, NightscoreError
from ml.images.rejection import RejectedError
from ml.parallel import parallel_map
from ml.report.rendering import render_template
from ml.storage.nights import night_range
from ml.storage.object_store import object_store

# How many images of each kind the page shows.
MAX_ANOMALIES = 48
MAX_UNCERTAIN = 24
MAX_REVIEWED = 24
MAX_REJECTIONS = 100
MAX_MISSING = 100
MAX_CAMERAS = 60
_THUMBNAIL_PX = 160


class DeletedReportError(FileNotFoundError):
    """A report is not there any more, since retention has deleted it."""


def write(run_id: UUID) -> str:
    """Render the report of a run from the tables as they are now, and put it into S3.

    Returns:
        The URI of the page.

    Raises:
        DataError: there is no such run.
        ServiceError: Postgres or S3 failed.
    """
    page = render(run_id)
    with transaction() as session:
        run = _summary(session, run_id)
        uri = _uri(run["stream"], run["night"], run_id)
        object_store().put(uri, page.encode(), "text/html; charset=utf-8")
        session.execute(
            sa.update(ScoringRun).where(ScoringRun.run_id == run_id).values(report_uri=uri)
        )
    return uri


def read(run_id: UUID, may_read: Callable[[str], bool] = lambda stream: True) -> str:
    """Return the stored report of a run; the analyst's login is enough.

    Args:
        run_id: the run.
        may_read: whether the reader may see the reports of a stream.

    Raises:
        FileNotFoundError: the run has no report that the reader may see.
        DeletedReportError: it had one, and retention has deleted it.
        ServiceError: Postgres or S3 failed.
    """
    with analyst_engine().connect() as connection:
        reports = rows(connection, "report/sql/stored", run_id=run_id)
    if not reports or not may_read(reports[0]["stream"]):
        raise FileNotFoundError(f"The scoring run {run_id} has no report.")
    try:
        return object_store().get(reports[0]["report_uri"])[0].decode()
    except FileNotFoundError:
        _raise_if_deleted(reports[0]["stream"], reports[0]["night"])
        raise


def _raise_if_deleted(stream: str, night: date) -> None:
    with analyst_engine().connect() as connection:
        (row,) = rows(connection, "report/sql/deleted_report", stream=stream, night=night)
    if row["deleted_at"] is not None:
        raise DeletedReportError(
            f"The report of {stream}, night {night}, was deleted on {row['deleted_at']:%Y-%m-%d}, "
            "as its limit in nightscore.yaml had passed. `nightscore report` writes it anew from "
            "the tables, if they have the night still."
        )


def render(run_id: UUID) -> str:
    """Return the report of a run as HTML; all its figures are from one snapshot of the tables.

    Raises:
        DataError: there is no such run, or its manifest was deleted.
        ServiceError: Postgres or S3 failed.
    """
    with transaction(repeatable_read=True) as session:
        summary = _summary(session, run_id)
        nights = _nights(session, run_id)
        if summary["discovered"] and not nights:
            raise DataError(
                f"The list of the images of run {run_id} was deleted, as its limit in "
                "nightscore.yaml had passed, so its report cannot be written again.",
                "reporting.predictions and reporting.anomalies may still have its results.",
            )

        def read(name: str, **limit: int) -> list[Mapping[str, Any]]:
            return rows(session, name, run_id=run_id, nights=nights, **limit)

        sections: dict[str, list[Any]] = {
            "versions": rows(session, "report/sql/versions", run_id=run_id),
            "anomalies": read("report/sql/anomalies", most=MAX_ANOMALIES),
            "review": read("report/sql/review", most=MAX_REVIEWED),
            "uncertain": read("report/sql/uncertain", most=MAX_UNCERTAIN),
            "classes": read("report/sql/classes"),
            "cameras": read("report/sql/cameras", most=MAX_CAMERAS),
            "drift": rows(
                session,
                "report/sql/drift",
                run_id=run_id,
                stream=summary["stream"],
                night=summary["night"],
            ),
            "reasons": [],
            "rejections": [],
            "missing": [],
        }
        # The counts of a finished run are complete, so it is known where there is nothing to find.
        is_finished = summary["status"] == FINISHED
        if summary["rejected"] or not is_finished:
            sections["reasons"] = read("report/sql/reasons")
            sections["rejections"] = read("report/sql/rejections", most=MAX_REJECTIONS)
        if not is_finished:
            sections["missing"] = read("report/sql/missing_images", most=MAX_MISSING)
    for gallery in ("anomalies", "review", "uncertain"):
        sections[gallery] = list(
            parallel_map(_add_pictures, sections[gallery], threads=8, buffer_size=16)
        )
    return render_template("run.html", run=summary, **sections)


def _summary(session: Session, run_id: UUID) -> dict[str, Any]:
    summaries = rows(session, "report/sql/summary", run_id=run_id)
    if not summaries:
        raise DataError(f"There is no scoring run {run_id}.")
    return dict(summaries[0])


def _nights(session: Session, run_id: UUID) -> list[date]:
    """The nights of the run's images."""
    first, last = session.execute(
        sa.select(ScoringRun.lookback_from, ScoringRun.night).where(ScoringRun.run_id == run_id)
    ).one()
    found = rows(session, "report/sql/nights", run_id=run_id, nights=night_range(first, last))
    return [row["night"] for row in found]


def _uri(stream: str, night: date, run_id: UUID) -> str:
    return f"{configuration().storage}/reports/{stream}/dt={night}/{run_id}.html"


def _add_pictures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "picture": _thumbnail(row["uri"]),
        "heatmap": _embed(row["heatmap_uri"]) if row.get("heatmap_uri") else None,
    }


def _thumbnail(uri: str) -> str | None:
    """The image as a data URI, enlarged if it is small; None when it is gone or unreadable."""
    # Not at the top: a night without new images needs neither.
    from PIL import Image

    from ml.images import decoding

    try:
        content, _ = object_store().get(uri)
        pixels = decoding.decode(content, max_pixels=MAX_PIXELS, target_size=(_THUMBNAIL_PX,) * 2)
    except (FileNotFoundError, NightscoreError, RejectedError):
        return None
    image = Image.fromarray(pixels)
    scale = _THUMBNAIL_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size).save(buffer, "JPEG", quality=85)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def _embed(uri: str) -> str | None:
    """A picture of the object store as a data URI; None when it is gone."""
    try:
        # The heat maps of older runs are PNG files.
        media_type = "image/png" if uri.endswith(".png") else "image/jpeg"
        return _data_uri(object_store().get(uri)[0], media_type)
    except (FileNotFoundError, NightscoreError):
        return None


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
