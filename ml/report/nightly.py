"""The page of one scoring run: what was found, flagged, marked for review, or not to be scored.

The page is one HTML file without scripts or outside references; pictures are embedded.
"""

import base64
import io
from datetime import date
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.config.schema import MAX_PIXELS
from ml.database.connection import rows, transaction
from ml.database.tables import ScoringRun
from ml.errors import DataError, NightscoreError
from ml.images.rejection import RejectedError
from ml.parallel import parallel_map
from ml.report.rendering import render as render_template
from ml.storage.object_store import object_store

MOST_ANOMALIES = 48
MOST_UNCERTAIN = 24
MOST_REVIEWED = 24
MOST_REJECTIONS = 100
MOST_MISSING = 100
_THUMBNAIL_PX = 160


def write(run_id: UUID) -> str:
    """Render the page of a run as the tables have it now and put it into S3; returns its URI."""
    content = render(run_id)
    with transaction() as session:
        run = _summary(session, run_id)
        uri = _uri(run["stream"], run["night"], run_id)
        object_store().put(uri, content.encode(), "text/html; charset=utf-8")
        session.execute(
            sa.update(ScoringRun).where(ScoringRun.run_id == run_id).values(report_uri=uri)
        )
    return uri


def read(run_id: UUID) -> str:
    """The stored page of a run; raises FileNotFoundError when it has none."""
    with transaction() as session:
        uri = session.scalar(sa.select(ScoringRun.report_uri).where(ScoringRun.run_id == run_id))
    if uri is None:
        raise FileNotFoundError(f"The scoring run {run_id} has no report.")
    return object_store().get(uri)[0].decode()


def render(run_id: UUID) -> str:
    """The page of a run as HTML; all its figures are of one moment."""
    with transaction(repeatable_read=True) as session:
        summary = _summary(session, run_id)
        found = {
            "versions": rows(session, "report/sql/versions", run_id=run_id),
            "anomalies": rows(session, "report/sql/anomalies", run_id=run_id, most=MOST_ANOMALIES),
            "review": rows(session, "report/sql/review", run_id=run_id, most=MOST_REVIEWED),
            "uncertain": rows(session, "report/sql/uncertain", run_id=run_id, most=MOST_UNCERTAIN),
            "classes": rows(session, "report/sql/classes", run_id=run_id),
            "reasons": rows(session, "report/sql/reasons", run_id=run_id),
            "rejections": rows(
                session, "report/sql/rejections", run_id=run_id, most=MOST_REJECTIONS
            ),
            "missing": rows(session, "report/sql/missing_images", run_id=run_id, most=MOST_MISSING),
            "drift": rows(
                session,
                "report/sql/drift",
                run_id=run_id,
                stream=summary["stream"],
                night=summary["night"],
            ),
        }
    for gallery in ("anomalies", "review", "uncertain"):
        found[gallery] = list(
            parallel_map(_with_pictures, found[gallery], threads=8, buffer_size=16)
        )
    return render_template("run.html", run=summary, **found)


def _summary(session: Session, run_id: UUID) -> dict[str, Any]:
    found = rows(session, "report/sql/summary", run_id=run_id)
    if not found:
        raise DataError(f"There is no scoring run {run_id}.")
    return dict(found[0])


def _uri(stream: str, night: date, run_id: UUID) -> str:
    return f"{configuration().storage}/reports/{stream}/dt={night}/{run_id}.html"


def _with_pictures(row: Any) -> dict[str, Any]:
    return {
        **row,
        "picture": _thumbnail(row["uri"]),
        "heatmap": _embedded(row["heatmap_uri"]) if row.get("heatmap_uri") else None,
    }


def _thumbnail(uri: str) -> str | None:
    """The image as a data URI, small crops enlarged; None when it is gone or unreadable."""
    # What a night without new images has no use for.
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


def _embedded(uri: str) -> str | None:
    try:
        # Those of older runs are PNGs.
        kind = "image/png" if uri.endswith(".png") else "image/jpeg"
        return _data_uri(object_store().get(uri)[0], kind)
    except (FileNotFoundError, NightscoreError):
        return None


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
