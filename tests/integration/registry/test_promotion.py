"""Promotions that stop half-way: MLflow says what the champion is, the tables follow, all is
audited."""

from datetime import date

import pytest
import sqlalchemy as sa

from ml.database.connection import transaction
from ml.errors import ServiceError
from ml.registry import promotion
from ml.registry import versions as registry
from ml.scoring import run as runs
from tests.support.versions import other_than_champion


def _audited() -> list[tuple[str, int, str]]:
    with transaction() as session:
        found = session.execute(
            sa.text(
                "SELECT action, version, state FROM nightscore.promotion"
                " WHERE model = 'shades' ORDER BY promotion_id DESC LIMIT 2"
            )
        )
        return [tuple(row) for row in found]


def _mirrored(alias: str) -> int | None:
    with transaction() as session:
        return session.scalar(
            sa.text(
                "SELECT version FROM nightscore.model_alias WHERE model = 'shades' AND alias = :a"
            ),
            {"a": alias},
        )


@pytest.fixture
def versions(trained):
    """The champion of `shades` and another version; the champion is as it was afterwards."""
    first = promotion.champion("shades")
    yield first, other_than_champion("shades")
    promotion.promote("shades", first, reason="as it was", by="test")


def test_an_interruption_before_mlflow_hears_of_it_changes_nothing(versions, monkeypatch):
    first, second = versions

    def fail(model: str, alias: str, version: int) -> None:
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(registry, "set_alias", fail)
        with pytest.raises(ServiceError):
            promotion.promote("shades", second, reason="test", by="test")
    assert _audited()[0] == ("promote", second, "pending")
    assert promotion.champion("shades") == first
    assert _audited()[0] == ("promote", second, "abandoned")
    assert _mirrored("champion") == first


def test_an_interruption_after_mlflow_has_heard_of_it_is_completed(versions, monkeypatch):
    first, second = versions
    set_alias = registry.set_alias

    def fail_afterwards(model: str, alias: str, version: int) -> None:
        set_alias(model, alias, version)
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(registry, "set_alias", fail_afterwards)
        with pytest.raises(ServiceError):
            promotion.promote("shades", second, reason="test", by="test")
    assert _mirrored("champion") == first
    assert promotion.champion("shades") == second
    assert _audited()[0] == ("promote", second, "done")
    assert (_mirrored("champion"), _mirrored("previous")) == (second, first)
    assert registry.version_of_alias("shades", "previous") == first
    # Repeating it, as a retried task does, adds no second audit row.
    assert not promotion.promote("shades", second, reason="test", by="test").changed
    assert _audited()[0] == ("promote", second, "done")
    assert promotion.rollback("shades", reason="test", by="test").version == first


def test_a_champion_that_was_made_in_mlflow_itself_is_audited_when_a_run_opens(versions):
    _, second = versions
    registry.set_alias("shades", "champion", second)
    run_id = runs.open_run("line", date(2042, 1, 1))
    with transaction() as session:
        assert runs.pinned(session, run_id) == {"shades": second}
    assert _audited()[0] == ("outside", second, "done")
    assert _mirrored("champion") == second
    before = _audited()
    promotion.champion("shades")
    assert _audited() == before
