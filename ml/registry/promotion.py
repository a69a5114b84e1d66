"""Which version is champion: changed under a lock, in MLflow and here, and audited.

MLflow's alias write is last-writer-wins, so two promotions at once take turns at a lock in
Postgres. MLflow's alias `champion` is what counts; `nightscore.model_alias` mirrors the aliases for
SQL, and `nightscore.promotion` keeps every change. A promotion is written down as pending before
MLflow is told. Whoever takes the lock next completes what was interrupted.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ml.database.connection import engine
from ml.database.tables import (
    ABANDONED,
    CHALLENGER,
    CHAMPION,
    DONE,
    PENDING,
    PREVIOUS,
    ModelAlias,
    ModelVersion,
    Promotion,
)
from ml.errors import DataError, ServiceError
from ml.registry import versions

log = logging.getLogger(__name__)

_LOCK = sa.text("SELECT pg_advisory_lock(hashtext('promotion'), hashtext(:model))")
_UNLOCK = sa.text("SELECT pg_advisory_unlock(hashtext('promotion'), hashtext(:model))")


@dataclass(frozen=True)
class Promoted:
    """The champion now, and the version it replaced; `changed` is False when it was champion."""

    model: str
    version: int
    replaced: int | None
    changed: bool


def promote(model: str, version: int, *, reason: str, by: str) -> Promoted:
    """Make a version champion; the old one becomes `previous`. Repeating it changes nothing.

    Raises:
        DataError: the model has no such version, or nothing is recorded of it.
        ServiceError: MLflow or Postgres failed. The champion is the old one or this one; the next
            promotion, or the next scoring run, brings the tables in line with MLflow.
    """
    known = versions.versions(model)
    if version not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise DataError(f"{model} has no version {version}.", f"Registered versions: {listed}.")
    with _locked(model) as (session, champion):
        return _change(session, model, champion, version, "promote", reason, by)


def rollback(model: str, *, reason: str, by: str) -> Promoted:
    """Make the version that was champion before the champion again, and the other way round.

    Raises:
        DataError: there is no previous champion.
        ServiceError: as `promote`.
    """
    with _locked(model) as (session, champion):
        previous = versions.version_of_alias(model, PREVIOUS)
        if previous is None:
            raise DataError(
                f"{model} has no previous champion to return to.",
                f"Choose a version with `nightscore promote {model} VERSION`.",
            )
        return _change(session, model, champion, previous, "rollback", reason, by)


def set_challenger(model: str, version: int) -> None:
    """Let the alias `challenger` name the version trained last."""
    with _locked(model) as (session, _):
        _set(session, model, CHALLENGER, version)


def champion(model: str) -> int | None:
    """The version that is champion, None without one.

    Waits for a promotion under way, and brings the tables in line with MLflow: it completes a
    promotion that was interrupted, and audits a champion that was made in MLflow itself.
    """
    with _locked(model) as (_, version):
        return version


@contextmanager
def _locked(model: str) -> Iterator[tuple[Session, int | None]]:
    """The model's lock, which outlasts the transactions that are committed under it; gives the
    champion too, with which the tables agree now.
    """
    with engine().connect() as connection, Session(connection) as session:
        key = {"model": model}
        session.execute(_LOCK, key)
        try:
            yield session, _settle(session, model)
            session.commit()
        finally:
            # A connection that goes back to the pool keeps its locks; a broken one has none.
            with suppress(ServiceError, sa.exc.SQLAlchemyError):
                session.rollback()
                session.execute(_UNLOCK, key)
                session.commit()


def _settle(session: Session, model: str) -> int | None:
    """Bring the tables in line with MLflow: whatever stopped a promotion half-way, MLflow's alias
    names one version, and says whether the promotion came about. Returns that version.
    """
    champion = versions.version_of_alias(model, CHAMPION)
    pending = session.scalars(
        sa.select(Promotion)
        .where(Promotion.model == model, Promotion.state == PENDING)
        .order_by(Promotion.promotion_id)
    ).all()
    for left in pending:
        left.state = DONE if left.version == champion else ABANDONED
        log.warning(
            "%s: the promotion of version %s was interrupted and is %s now",
            model,
            left.version,
            left.state,
        )
        if left.state == DONE and left.replaced is not None:
            _set(session, model, PREVIOUS, left.replaced)
    mirrored = session.scalar(
        sa.select(ModelAlias.version).where(ModelAlias.model == model, ModelAlias.alias == CHAMPION)
    )
    if champion is None or champion == mirrored:
        return champion
    if not any(left.state == DONE for left in pending):
        _audit_outside(session, model, champion, mirrored)
    _mirror(session, model, CHAMPION, champion)
    return champion


def _audit_outside(session: Session, model: str, version: int, replaced: int | None) -> None:
    reason = "the alias was moved in MLflow, not by Nightscore"
    log.warning("%s: version %s is champion instead of %s: %s", model, version, replaced, reason)
    session.add(
        Promotion(
            model=model,
            version=version,
            replaced=replaced,
            action="outside",
            reason=reason,
            promoted_by="unknown",
        )
    )


def _change(
    session: Session,
    model: str,
    champion: int | None,
    version: int,
    action: str,
    reason: str,
    by: str,
) -> Promoted:
    if session.get(ModelVersion, (model, version)) is None:
        raise DataError(
            f"{model}/{version} is not registered in nightscore.model_version, so it cannot score.",
            f"Register a version with `nightscore train {model}`.",
        )
    if champion == version:
        return Promoted(model, version, champion, False)
    promotion = Promotion(
        model=model,
        version=version,
        replaced=champion,
        action=action,
        reason=reason,
        promoted_by=by,
        state=PENDING,
    )
    session.add(promotion)
    session.commit()
    # One write: whatever stops us before or after it, `champion` names one version.
    _set(session, model, CHAMPION, version)
    if champion is not None:
        _set(session, model, PREVIOUS, champion)
    promotion.state = DONE
    log.info("%s: version %s is champion, it replaces %s (%s)", model, version, champion, reason)
    return Promoted(model, version, champion, True)


def _set(session: Session, model: str, alias: str, version: int) -> None:
    versions.set_alias(model, alias, version)
    _mirror(session, model, alias, version)


def _mirror(session: Session, model: str, alias: str, version: int) -> None:
    statement = insert(ModelAlias).values(model=model, alias=alias, version=version)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["model", "alias"],
            set_={"version": version, "set_at": sa.func.now()},
            where=ModelAlias.version != version,
        )
    )
