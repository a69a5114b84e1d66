"""The end of a run: is every image it found scored or rejected?"""

import logging
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.database.connection import rows, transaction
from ml.database.tables import FAILED, FINISHED, ModelVersion, ScoringRun
from ml.errors import RunFailedError
from ml.images.rejection import TRANSIENT
from ml.scoring import run as runs

log = logging.getLogger(__name__)

_MOST_NAMED = 10


def reconcile(run_id: UUID) -> dict[str, Any]:
    """Count what became of the run's images and set its status.

    A run is `finished` when discovered = scored + rejected and the share of rejections is within
    the stream's limit; else it is `failed`, with the reason in its row. Either way everything
    that was stored stays.

    Returns:
        `discovered`, `scored`, `rejected`, `anomalies`, `to_review`: numbers of images;
        `synthetic`: whether an image or a model comes from the built-in samples; `seconds`: the
        whole time of the run so far; `engine_images_per_second`: the rate while images were scored,
        None without any.

    Raises:
        RunFailedError: the run failed; the message says why.
    """
    with transaction() as session:
        run = runs.get(session, run_id)
        listed = run.discovered is not None
        counts = dict(
            rows(session, "scoring/sql/reconcile", run_id=run_id, transient=list(TRANSIENT))[0]
        )
        error = _fault(run, counts) if listed else "the images of the night were not listed"
        run.discovered = counts["discovered"] if listed else None
        run.scored, run.rejected = counts["scored"], counts["rejected"]
        run.anomalies, run.to_review = counts["anomalies"], counts["to_review"]
        run.synthetic = synthetic = counts["synthetic"] or _models_are_synthetic(run_id)
        run.status, run.error = (FAILED, error) if error else (FINISHED, None)
        run.finished_at = session.scalar(sa.select(sa.func.clock_timestamp()))
        session.flush()  # the views are of what is in the tables
        summary = rows(session, "report/sql/summary", run_id=run_id)[0]
        if counts["missing"]:
            run.error = error = f"{error}{_missing(session, run_id)}"
        name = f"run {run_id} of {run.stream} for {run.night}"
    if error:
        raise RunFailedError(
            f"The scoring {name} failed: {error}.", "What was stored stays stored."
        )
    log.info("The scoring %s is finished: %s", name, counts)
    names = ("discovered", "scored", "rejected", "anomalies", "to_review")
    rates = {name: summary[name] for name in ("seconds", "engine_images_per_second")}
    return {**{name: counts[name] for name in names}, "synthetic": synthetic, **rates}


def require_finished(run_id: UUID) -> None:
    """Raise RunFailedError, with the run's error, unless its status is `finished`."""
    with transaction() as session:
        run = runs.get(session, run_id)
        if run.status != FINISHED:
            raise RunFailedError(
                f"The scoring run {run_id} is {run.status}: {run.error or 'see its log'}."
            )


def _fault(run: ScoringRun, counts: dict[str, Any]) -> str | None:
    if counts["missing"]:
        shards = ", ".join(map(str, counts["missing_shards"][:20]))
        return (
            f"{counts['missing']} of {counts['discovered']} images are neither scored nor "
            f"rejected, in shard {shards}"
        )
    share = counts["rejected"] / max(counts["discovered"], 1)
    if share > run.max_rejected_share:
        return (
            f"{counts['rejected']} of {counts['discovered']} images were rejected "
            f"({share:.1%}; the stream allows {run.max_rejected_share:.1%})"
        )
    return None


def _missing(session: Session, run_id: UUID) -> str:
    """Which images are missing and how their shards failed, for the run's row."""
    missing = rows(session, "report/sql/missing_images", run_id=run_id, most=_MOST_NAMED)
    failures = {
        row["shard"]: f"; shard {row['shard']} failed {row['attempts']} times, {row['error']}"
        for row in missing
        if row["error"]
    }
    names = "; ".join(repr(row["image_uri"]) for row in missing)
    more = missing[0]["images"] - len(missing) if missing else 0
    others = f" and {more} more in reporting.missing_images" if more else ""
    return f"{''.join(failures.values())}: {names}{others}"


def _models_are_synthetic(run_id: UUID) -> bool:
    with transaction() as session:
        pinned = runs.pinned(session, run_id)
        return any(
            version.synthetic
            for model, number in pinned.items()
            if (version := session.get(ModelVersion, (model, number))) is not None
        )
