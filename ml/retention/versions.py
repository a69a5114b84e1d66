"""Versions and training runs in MLflow that nothing needs; `model_history` has the rules.

A version goes in three steps, each of which the next run of `maintain` continues: it is marked
deleted in Nightscore's tables, under the lock of the model's promotions; it leaves the registry;
then its run goes with all artifacts, and the run itself last. Its row in the tables stays, as
results name it.
"""

import logging
from collections.abc import Iterable, Iterator
from datetime import date

from sqlalchemy.orm import Session

from ml.config.loading import configuration
from ml.database.advisory import TRAINING_RUN, try_exclusive
from ml.database.connection import maintainer_engine, rows, statement
from ml.registry import deletion, promotion
from ml.registry.deletion import StoredRun, StoredVersion
from ml.retention.candidate import Candidate
from ml.retention.model_history import ModelHistory, RecordedPromotion, RecordedVersion
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.retention.session import transaction

log = logging.getLogger(__name__)

KIND = "versions"
_RUN = "runs"


def candidates(policy: Policy, today: date) -> Iterator[Candidate]:
    """Yield the versions (MODEL/VERSION) and other runs (MODEL/runs/ID) that may be deleted.

    Models are those of `nightscore.yaml` and those of which a version was ever registered. Of a
    version, items and bytes are those of its run's artifacts; 1 is added for the version itself.

    Args:
        policy: the limits.
        today: the day (UTC) from which they count back.

    Raises:
        ServiceError: MLflow or Postgres failed.
    """
    with transaction() as session:
        recorded = {row["model"] for row in rows(session, "retention/sql/models")}
    for model in sorted(recorded | set(configuration().models)):
        first = policy.first_version_day(model, today)
        if first is not None:
            yield from _of_model(model, first, policy, today)


def delete(candidate: Candidate, policy: Policy, today: date) -> None:
    """Delete a version or a run with all its artifacts; repeating it deletes what is left.

    Args:
        candidate: what to delete.
        policy: the limits.
        today: the day (UTC) from which they count back.

    Raises:
        StillNeededError: it is needed by now.
        ServiceError: MLflow or Postgres failed; deleting again goes on.
    """
    model, _, name = candidate.name.partition("/")
    first = policy.first_version_day(model, today)
    if candidate.kind != KIND:
        raise ValueError(f"{candidate} is neither a version nor a run")
    if first is None:
        raise StillNeededError(f"No limit `{KIND}` is set for {model}.")
    if name.startswith(f"{_RUN}/"):
        _delete_run(model, name.removeprefix(f"{_RUN}/"), first, policy, today)
        return
    run_id = _delete_version(model, int(name), first, policy, today)
    if run_id is not None:
        try:
            _delete_run(model, run_id, first, policy, today)
        except StillNeededError as error:
            log.info("%s is deleted, and its run stays: %s", candidate.name, error.message)


def _of_model(model: str, first: date, policy: Policy, today: date) -> Iterator[Candidate]:
    with transaction() as session:
        history = _read_history(session, model, policy, today)
    unused = history.unused_versions(first)
    for version in unused:
        items, size = deletion.artifacts_size(version.run_id)
        reason = f"no alias, promotion or night that is kept names it since {first}"
        yield Candidate(KIND, f"{model}/{version.version}", None, None, items + 1, size, reason)
    for run in history.unused_runs(first):
        items, size = deletion.artifacts_size(run.run_id)
        reason = f"no version came from it, and it ended before {first}"
        yield Candidate(KIND, f"{model}/{_RUN}/{run.run_id}", None, None, items, size, reason)


def _delete_version(
    model: str, version: int, first: date, policy: Policy, today: date
) -> str | None:
    """Delete a version from the registry; returns its run, or None if it is deleted already."""
    with (
        maintainer_engine().connect() as connection,
        Session(connection) as session,
        promotion.exclusive(session, model),
    ):
        history = _read_history(session, model, policy, today)
        if version not in {entry.version for entry in history.stored}:
            return None
        unused = _find_version(history.unused_versions(first), version)
        if unused is None:
            raise StillNeededError(f"{model}/{version} is needed by now.")
        session.execute(
            statement("retention/sql/mark_deleted"), {"model": model, "version": version}
        )
        session.commit()
        deletion.delete_version(model, version)
        return unused.run_id


def _delete_run(model: str, run_id: str, first: date, policy: Policy, today: date) -> None:
    with transaction() as session:
        if not try_exclusive(session, TRAINING_RUN, run_id):
            raise StillNeededError(f"Run {run_id} is being registered.")
        history = _read_history(session, model, policy, today)
        if not _has_run(history.runs, run_id):
            return
        if not _has_run(history.unused_runs(first), run_id):
            raise StillNeededError(f"Run {run_id} of {model} is needed.")
        # A version of another name may have come from it.
        if others := deletion.models_of_run(run_id):
            raise StillNeededError(f"Run {run_id} of {model} is needed by {', '.join(others)}.")
        deletion.delete_run(run_id)


def _read_history(session: Session, model: str, policy: Policy, today: date) -> ModelHistory:
    # What may be deleted is read before what needs it.
    stored, runs = deletion.stored_versions(model), deletion.stored_runs(model)
    recorded = rows(session, "retention/sql/recorded_versions", model=model)
    mirrored = rows(session, "retention/sql/mirrored_aliases", model=model)
    promotions = rows(session, "retention/sql/recorded_promotions", model=model)
    return ModelHistory(
        model,
        stored=stored,
        recorded=[RecordedVersion(**row) for row in recorded],
        aliased=frozenset(deletion.aliased_versions(model) | {row["version"] for row in mirrored}),
        promotions=[RecordedPromotion(**row) for row in promotions],
        pinned=_pinned(session, model, policy, today),
        runs=runs,
    )


def _pinned(session: Session, model: str, policy: Policy, today: date) -> frozenset[int]:
    """The versions of runs that are open, or of a night whose results are kept."""
    pinned = set()
    for row in rows(session, "retention/sql/pinned_versions", model=model):
        first = policy.first_night("results", row["stream"], today)
        if row["is_open"] or first is None or row["last_night"] >= first:
            pinned.add(row["version"])
    return frozenset(pinned)


def _find_version(versions: list[StoredVersion], version: int) -> StoredVersion | None:
    return next((entry for entry in versions if entry.version == version), None)


def _has_run(runs: Iterable[StoredRun], run_id: str) -> bool:
    return any(run.run_id == run_id for run in runs)
