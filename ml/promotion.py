"""Which version is champion: changed under a lock, in MLflow and here, and audited.

MLflow's alias write is last-writer-wins, so two promotions at once take turns at a lock in
Postgres. `nightscore.model_alias` mirrors the aliases, `nightscore.promotion` keeps every change.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ml import registry
from ml.database import session
from ml.errors import DataError
from ml.tables import CHALLENGER, CHAMPION, PREVIOUS, ModelAlias, ModelVersion, Promotion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Promoted:
    """The champion now, and the version it replaced; `changed` is False when it was champion."""

    model: str
    version: int
    replaced: int | None
    changed: bool


def promote(model: str, version: int, *, reason: str, by: str) -> Promoted:
    """Make a version champion; the old one becomes `previous`. Repeating it changes nothing.

    Raises
    ------
    DataError: the model has no such version, or nothing is recorded of it.
    """
    known = registry.versions(model)
    if version not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise DataError(f"{model} has no version {version}.", f"Registered versions: {listed}.")
    with _locked(model) as current:
        return _change(current, model, version, "promote", reason, by)


def rollback(model: str, *, reason: str, by: str) -> Promoted:
    """Make the version that was champion before the champion again, and the other way round.

    Raises
    ------
    DataError: there is no previous champion.
    """
    with _locked(model) as current:
        previous = registry.version_of_alias(model, PREVIOUS)
        if previous is None:
            raise DataError(
                f"{model} has no previous champion to return to.",
                f"Choose a version with `nightscore promote {model} VERSION`.",
            )
        return _change(current, model, previous, "rollback", reason, by)


def set_challenger(model: str, version: int) -> None:
    """Let the alias `challenger` name the version trained last."""
    with _locked(model) as current:
        _set(current, model, CHALLENGER, version)


@contextmanager
def _locked(model: str) -> Iterator[Session]:
    with session() as current:
        current.execute(
            sa.text("SELECT pg_advisory_xact_lock(hashtext('promotion'), hashtext(:model))"),
            {"model": model},
        )
        yield current


def _change(
    current: Session, model: str, version: int, action: str, reason: str, by: str
) -> Promoted:
    if current.get(ModelVersion, (model, version)) is None:
        raise DataError(
            f"{model}/{version} is not registered in nightscore.model_version, so it cannot score.",
            f"Register a version with `nightscore train {model}`.",
        )
    champion = registry.version_of_alias(model, CHAMPION)
    if champion == version:
        _mirror(current, model, CHAMPION, version)
        return Promoted(model, version, champion, False)
    # `previous` first: whatever stops us in between, `champion` always names a version.
    if champion is not None:
        _set(current, model, PREVIOUS, champion)
    _set(current, model, CHAMPION, version)
    current.add(
        Promotion(
            model=model,
            version=version,
            replaced=champion,
            action=action,
            reason=reason,
            promoted_by=by,
        )
    )
    log.info("%s: version %s is champion, it replaces %s (%s)", model, version, champion, reason)
    return Promoted(model, version, champion, True)


def _set(current: Session, model: str, alias: str, version: int) -> None:
    registry.set_alias(model, alias, version)
    _mirror(current, model, alias, version)


def _mirror(current: Session, model: str, alias: str, version: int) -> None:
    statement = insert(ModelAlias).values(model=model, alias=alias, version=version)
    current.execute(
        statement.on_conflict_do_update(
            index_elements=["model", "alias"],
            set_={"version": version, "set_at": sa.func.now()},
            where=ModelAlias.version != version,
        )
    )
