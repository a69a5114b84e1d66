"""Which version is champion: changed under a lock, in MLflow and in Postgres, and audited.

When two processes write an alias in MLflow, the last one wins. Promotions of a model therefore
take turns at a lock in Postgres. MLflow's alias `champion` decides; `nightscore.model_alias`
mirrors the aliases for SQL, and `nightscore.promotion` keeps every change. A promotion is recorded
as pending before the alias is set in MLflow. Whoever takes the lock next completes what was
interrupted.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ml.database.connection import engine, transaction
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
from ml.registry.registration import check_not_deleted

log = logging.getLogger(__name__)

_LOCK = sa.text("SELECT pg_advisory_lock(hashtext('promotion'), hashtext(:model))")
_UNLOCK = sa.text("SELECT pg_advisory_unlock(hashtext('promotion'), hashtext(:model))")


@dataclass(frozen=True)
class PromotionResult:
    """The outcome of a promotion.

    Attributes:
        model: the model's name.
        version: the version that is champion now.
        replaced: the champion before; None when there was none.
        changed: False when the version was champion already.
    """

    model: str
    version: int
    replaced: int | None
    changed: bool


def promote(model: str, version: int, *, reason: str, by: str) -> PromotionResult:
    """Make a version champion; the champion before becomes `previous`.

    Repeating it changes nothing.

    Args:
        model: the model's name.
        version: the version to promote.
        reason: why, for the audit.
        by: who, for the audit.

    Raises:
        DataError: the model has no such version, nothing is recorded of it, or retention has
            deleted it.
        ServiceError: MLflow or Postgres failed. The champion is the old or the new version; the
            next promotion, or the next scoring run, brings the tables in line with MLflow.
    """
    known = versions.list_versions(model)
    if version not in known:
        _check_not_deleted(model, version)
        numbers = ", ".join(map(str, known)) or "none"
        raise DataError(f"{model} has no version {version}.", f"Registered versions: {numbers}.")
    with _lock(model) as (session, champion_version):
        return _change(session, model, champion_version, version, "promote", reason, by)


def rollback(model: str, *, reason: str, by: str) -> PromotionResult:
    """Make the version `previous` champion, and the champion `previous`.

    Args:
        model: the model's name.
        reason: why, for the audit.
        by: who, for the audit.

    Raises:
        DataError: there is no previous champion.
        ServiceError: as `promote`.
    """
    with _lock(model) as (session, champion_version):
        previous = versions.version_of_alias(model, PREVIOUS)
        if previous is None:
            raise DataError(
                f"{model} has no previous champion to return to.",
                f"Choose a version with `nightscore promote {model} VERSION`.",
            )
        return _change(session, model, champion_version, previous, "rollback", reason, by)


def set_challenger(model: str, version: int) -> None:
    """Let the alias `challenger` name the version trained last."""
    with _lock(model) as (session, _):
        _set_alias(session, model, CHALLENGER, version)


def champion(model: str) -> int | None:
    """Return the version that is champion; None when the model has none.

    Waits for a promotion in progress. Brings the tables in line with MLflow: completes a promotion
    that was interrupted, and audits a champion that was set in MLflow itself.

    Raises:
        ServiceError: MLflow or Postgres failed.
    """
    with _lock(model) as (_, version):
        return version


def _check_not_deleted(model: str, version: int) -> None:
    with transaction() as session:
        row = session.get(ModelVersion, (model, version))
        if row is not None:
            check_not_deleted(row)


@contextmanager
def exclusive(session: Session, model: str) -> Iterator[None]:
    """Keep promotions of a model from happening, and change nothing.

    Waits for a promotion in progress. Runs wait in turn when they open, so keep it short.

    Args:
        session: of any login; transactions that it ends do not release the lock.
        model: the model's name.
    """
    session.execute(_LOCK, {"model": model})
    try:
        yield
    finally:
        # A connection that goes back to the pool keeps its locks; a broken one has none.
        with suppress(ServiceError, sa.exc.SQLAlchemyError):
            session.rollback()
            session.execute(_UNLOCK, {"model": model})
            session.commit()


@contextmanager
def _lock(model: str) -> Iterator[tuple[Session, int | None]]:
    """Take the model's lock, which lasts beyond the transactions that are committed under it.

    Yields:
        A session, and the champion, with which the tables agree.
    """
    with (
        engine().connect() as connection,
        Session(connection) as session,
        exclusive(session, model),
    ):
        yield session, _reconcile(session, model)
        session.commit()


def _reconcile(session: Session, model: str) -> int | None:
    """Bring the tables in line with MLflow and return the champion.

    MLflow's alias names one version, whatever interrupted a promotion. So it tells whether the
    promotion took effect.
    """
    champion_version = versions.version_of_alias(model, CHAMPION)
    pending = session.scalars(
        sa.select(Promotion)
        .where(Promotion.model == model, Promotion.state == PENDING)
        .order_by(Promotion.promotion_id)
    ).all()
    for promotion in pending:
        promotion.state = DONE if promotion.version == champion_version else ABANDONED
        log.warning(
            "%s: the promotion of version %s was interrupted and is %s now",
            model,
            promotion.version,
            promotion.state,
        )
        if promotion.state == DONE and promotion.replaced is not None:
            _set_alias(session, model, PREVIOUS, promotion.replaced)
    mirrored = session.scalar(
        sa.select(ModelAlias.version).where(ModelAlias.model == model, ModelAlias.alias == CHAMPION)
    )
    if champion_version is None or champion_version == mirrored:
        return champion_version
    if not any(promotion.state == DONE for promotion in pending):
        _audit_outside_change(session, model, champion_version, mirrored)
    _mirror_alias(session, model, CHAMPION, champion_version)
    return champion_version


def _audit_outside_change(session: Session, model: str, version: int, replaced: int | None) -> None:
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
    replaced: int | None,
    version: int,
    action: str,
    reason: str,
    by: str,
) -> PromotionResult:
    """Make `version` champion in the place of `replaced`; the caller holds the lock."""
    # Under the lock: retention marks a version under it before it deletes the version.
    row = session.get(ModelVersion, (model, version), populate_existing=True)
    if row is None:
        raise DataError(
            f"{model}/{version} is not registered in nightscore.model_version, so it cannot score.",
            f"Register a version with `nightscore train {model}`.",
        )
    check_not_deleted(row)
    if replaced == version:
        return PromotionResult(model, version, replaced, changed=False)
    promotion = Promotion(
        model=model,
        version=version,
        replaced=replaced,
        action=action,
        reason=reason,
        promoted_by=by,
        state=PENDING,
    )
    session.add(promotion)
    session.commit()
    # A single write: `champion` names one version even if the process stops before or after it.
    _set_alias(session, model, CHAMPION, version)
    if replaced is not None:
        _set_alias(session, model, PREVIOUS, replaced)
    promotion.state = DONE
    log.info("%s: version %s is champion, it replaces %s (%s)", model, version, replaced, reason)
    return PromotionResult(model, version, replaced, changed=True)


def _set_alias(session: Session, model: str, alias: str, version: int) -> None:
    versions.set_alias(model, alias, version)
    _mirror_alias(session, model, alias, version)


def _mirror_alias(session: Session, model: str, alias: str, version: int) -> None:
    statement = insert(ModelAlias).values(model=model, alias=alias, version=version)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["model", "alias"],
            set_={"version": version, "set_at": sa.func.now()},
            where=ModelAlias.version != version,
        )
    )
