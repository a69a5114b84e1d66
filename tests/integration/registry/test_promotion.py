"""Promotions that stop half-way: MLflow says what the champion is, the tables follow, all is
audited."""

from datetime import date

import pytest
import sqlalchemy as sa

from ml.database.connection import transaction
from ml.errors import ServiceError
from ml.registry import promotion, versions
from ml.scoring import runs
from tests.support.registered import other_than_champion


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
def champion_and_other(trained):
    """The champion of `shades` and another version; the champion is as it was afterwards."""
    first = promotion.champion("shades")
    yield first, other_than_champion("shades")
    promotion.promote("shades", first, reason="as it was", by="test")


def test_an_interruption_before_mlflow_hears_of_it_changes_nothing(champion_and_other, monkeypatch):
    first, second = champion_and_other

    def fail(model: str, alias: str, version: int) -> None:
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(versions, "set_alias", fail)
        with pytest.raises(ServiceError):
            promotion.promote("shades", second, reason="test", by="test")
    assert _audited()[0] == ("promote", second, "pending")
    assert promotion.champion("shades") == first
    assert _audited()[0] == ("promote", second, "abandoned")
    assert _mirrored("champion") == first


def test_an_interruption_after_mlflow_has_heard_of_it_is_completed(champion_and_other, monkeypatch):
    first, second = champion_and_other
    set_alias = versions.set_alias

    def fail_afterwards(model: str, alias: str, version: int) -> None:
        set_alias(model, alias, version)
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(versions, "set_alias", fail_afterwards)
        with pytest.raises(ServiceError):
            promotion.promote("shades", second, reason="test", by="test")
    assert _mirrored("champion") == first
    assert promotion.champion("shades") == second
    assert _audited()[0] == ("promote", second, "done")
    assert (_mirrored("champion"), _mirrored("previous")) == (second, first)
    assert versions.version_of_alias("shades", "previous") == first
    # Repeating it, as a retried task does, adds no second audit row.
    assert not promotion.promote("shades", second, reason="test", by="test").changed
    assert _audited()[0] == ("promote", second, "done")
    assert promotion.rollback("shades", reason="test", by="test").version == first


def test_a_champion_that_was_made_in_mlflow_itself_is_audited_when_a_run_opens(champion_and_other):
    _, second = champion_and_other
    versions.set_alias("shades", "champion", second)
    run_id = runs.open_run("line", date(2042, 1, 1))
    with transaction() as session:
        assert runs.pinned_versions(session, run_id) == {"shades": second}
    assert _audited()[0] == ("outside", second, "done")
    assert _mirrored("champion") == second
    before = _audited()
    promotion.champion("shades")
    assert _audited() == before
