"""The end of a run: is every image of its manifest scored or rejected?"""

import logging
from datetime import date
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.database.connection import rows, transaction
from ml.database.partitions import analyze_nights
from ml.database.tables import FAILED, FINISHED, ModelVersion, ScoringRun
from ml.errors import RunFailedError
from ml.images.rejection import TRANSIENT
from ml.scoring import runs

log = logging.getLogger(__name__)

# How many missing images and shards the error of a run names.
_MAX_NAMED_IMAGES = 10
_MAX_NAMED_SHARDS = 20


def reconcile(run_id: UUID) -> dict[str, Any]:
    """Count what became of the run's images and set its status.

    A run is `finished` when discovered = scored + rejected and the share of rejections is within
    the stream's limit. Otherwise it is `failed`, with the reason in its row. In both cases all
    stored results stay.

    Returns:
        `discovered`, `scored`, `rejected`, `anomalies`, `to_review`: numbers of images;
        `synthetic`: whether an image or a model comes from the built-in samples; `seconds`: the
        whole time of the run so far; `engine_images_per_second`: the rate while images were scored,
        None if there were none.

    Raises:
        RunFailedError: the run failed; the message says why.
        DataError: there is no such run.
    """
    with transaction() as session:
        nights = runs.manifest_nights(session, run_id)
    analyze_nights(nights, ("prediction", "rejection"))
    with transaction() as session:
        run = runs.get_run(session, run_id)
        # NULL until the images of the night are listed, since a step before this one failed.
        is_listed = run.discovered is not None
        counts = dict(
            rows(
                session,
                "scoring/sql/reconcile",
                run_id=run_id,
                transient=list(TRANSIENT),
                nights=nights,
            )[0]
        )
        error = _fault(run, counts) if is_listed else "the images of the night were not listed"
        run.discovered = counts["discovered"] if is_listed else None
        run.scored, run.rejected = counts["scored"], counts["rejected"]
        run.anomalies, run.to_review = counts["anomalies"], counts["to_review"]
        # Discovery has looked at the images.
        run.synthetic = synthetic = run.synthetic or _has_synthetic_model(session, run_id)
        run.status, run.error = (FAILED, error) if error else (FINISHED, None)
        run.finished_at = session.scalar(sa.select(sa.func.clock_timestamp()))
        session.flush()  # the views below read the tables
        summary = rows(session, "report/sql/summary", run_id=run_id)[0]
        if counts["missing"]:
            run.error = error = f"{error}{_missing_images(session, run_id, nights)}"
        name = f"run {run_id} of {run.stream} for {run.night}"
    if error:
        raise RunFailedError(
            f"The scoring {name} failed: {error}.", "What was stored stays stored."
        )
    log.info("The scoring %s is finished: %s", name, counts)
    count_names = ("discovered", "scored", "rejected", "anomalies", "to_review")
    rates = {key: summary[key] for key in ("seconds", "engine_images_per_second")}
    return {**{key: counts[key] for key in count_names}, "synthetic": synthetic, **rates}


def require_finished(run_id: UUID) -> None:
    """Check that the status of a run is `finished`.

    Raises:
        RunFailedError: it is not; the message has the run's error.
        DataError: there is no such run.
    """
    with transaction() as session:
        run = runs.get_run(session, run_id)
        if run.status != FINISHED:
            raise RunFailedError(
                f"The scoring run {run_id} is {run.status}: {run.error or 'see its log'}."
            )


def _fault(run: ScoringRun, counts: dict[str, Any]) -> str | None:
    """Why the run has failed; None when it has not."""
    if counts["missing"]:
        shards = ", ".join(map(str, counts["missing_shards"][:_MAX_NAMED_SHARDS]))
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


def _missing_images(session: Session, run_id: UUID, nights: list[date]) -> str:
    """Which images are missing and how their shards failed, for the run's row."""
    missing = rows(
        session,
        "report/sql/missing_images",
        run_id=run_id,
        most=_MAX_NAMED_IMAGES,
        nights=nights,
    )
    failures = {
        row["shard"]: f"; shard {row['shard']} failed {row['attempts']} times, {row['error']}"
        for row in missing
        if row["error"]
    }
    names = "; ".join(repr(row["image_uri"]) for row in missing)
    rest = missing[0]["images"] - len(missing) if missing else 0
    others = f" and {rest} more in reporting.missing_images" if rest else ""
    return f"{''.join(failures.values())}: {names}{others}"


def _has_synthetic_model(session: Session, run_id: UUID) -> bool:
    versions = (
        session.get(ModelVersion, model_version)
        for model_version in runs.pinned_versions(session, run_id).items()
    )
    return any(version is not None and version.synthetic for version in versions)
