"""The champions that the main job needs: which models must be trained, and how they have become."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from ml.config.schema import Configuration
from ml.data import snapshot
from ml.database.connection import rows, transaction
from ml.database.tables import CHAMPION, ModelAlias, ModelVersion
from ml.errors import RunFailedError
from ml.stack.progress import OnMessage


def needs_training(model: str, config: Configuration, on_message: OnMessage) -> bool:
    """Return whether a model has no champion, or one trained from other images than there are now.

    Args:
        model: a model of nightscore.yaml.
        config: says from which data set the model is trained.
        on_message: called with a line for a person when the champion is used.
    """
    with transaction() as session:
        champion = session.scalar(
            sa.select(ModelVersion)
            .join(
                ModelAlias,
                (ModelAlias.model == ModelVersion.model)
                & (ModelAlias.version == ModelVersion.version),
            )
            .where(ModelAlias.model == model, ModelAlias.alias == CHAMPION)
        )
        if champion is None:
            return True
        version, trained_from = champion.version, champion.snapshot_uri
    settings = config.model(model)
    uri = snapshot.take_snapshot(
        settings.dataset,
        config.storage,
        holdout_share=settings.holdout_share,
        holdout_by=settings.holdout_by,
    )
    if trained_from != uri:
        return True
    on_message(f"model {model}: version {version} was trained from these images and is used")
    return False


def require_champion(model: str) -> None:
    """Check that a model has a champion to score with.

    Raises:
        RunFailedError: it has none; the message has the gate's reason.
    """
    with transaction() as session:
        if session.get(ModelAlias, (model, CHAMPION)) is not None:
            return
        newest = session.scalar(
            sa.select(ModelVersion)
            .where(ModelVersion.model == model)
            .order_by(ModelVersion.version.desc())
            .limit(1)
        )
        reason = newest.gate_reason if newest else "it has no version"
    raise RunFailedError(
        f"Model {model} has no champion: {reason}.",
        "Its page in MLflow shows how it trained; `gate` in nightscore.yaml decides.",
    )


def champion_rows(models: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `reporting.model_versions` of the models' champions."""
    with transaction() as session:
        return [dict(row) for row in rows(session, "stack/sql/champions", models=list(models))]
