"""Versions and runs that nothing needs go for good, from the real MLflow, S3 and Postgres."""

from uuid import uuid4

import pytest
import sqlalchemy as sa
from mlflow import register_model
from mlflow.exceptions import MlflowException

from ml.config.retention import ModelRetention, Retention, StreamRetention
from ml.database.advisory import TRAINING_RUN, in_use
from ml.database.connection import analyst_engine, transaction
from ml.database.tables import ModelAlias, ModelVersion
from ml.errors import DataError, ServiceError
from ml.registry import deletion, promotion, tracking
from ml.registry.client import mlflow_client
from ml.registry.registration import load_registration
from ml.retention import versions
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.storage.object_store import object_store
from tests.support import expiry

LATER = expiry.in_days(40)


@pytest.fixture
def model(services, storage) -> str:
    return f"old-{uuid4().hex[:8]}"


def _policy(model: str, days: int = 30, **streams: int) -> Policy:
    return Policy(
        Retention(),
        {name: StreamRetention(results=nights) for name, nights in streams.items()},
        {model: ModelRetention(versions=days)},
    )


def _planned(model: str, policy: Policy | None = None) -> list[str]:
    found = versions.candidates(policy or _policy(model), LATER)
    return [candidate.name.removeprefix(f"{model}/") for candidate in found]


def _delete(model: str, policy: Policy | None = None) -> None:
    policy = policy or _policy(model)
    for candidate in versions.candidates(policy, LATER):
        versions.delete(candidate, policy, LATER)


def _artifacts(made: expiry.Version) -> list[str]:
    """The objects of a version's run and logged model."""
    experiment = mlflow_client().get_run(made.run_id).info.experiment_id
    folders = (f"{experiment}/{made.run_id}", f"{experiment}/models/{made.model_id}")
    return [
        info.uri
        for folder in folders
        for page in object_store().list_pages(f"s3://mlflow/artifacts/{folder}")
        for info in page
    ]


def _stored(model: str) -> set[int]:
    return {entry.version for entry in deletion.stored_versions(model)}


def _deleted_at(model: str, version: int):
    with analyst_engine().connect() as connection:
        return connection.scalar(
            sa.text(
                "SELECT deleted_at FROM reporting.model_versions WHERE model = :m AND version = :v"
            ),
            {"m": model, "v": version},
        )


def test_a_version_that_nothing_needs_goes_with_its_run_and_all_artifacts(model, tmp_path):
    old, champion, newest = (expiry.registered(model, tmp_path) for _ in range(3))
    promotion.promote(model, champion.number, reason="test", by="test")
    policy = _policy(model)
    assert list(versions.candidates(policy, expiry.in_days(29))) == []
    (candidate,) = versions.candidates(policy, LATER)
    # The version, program.json, and the model's file; the size counts files.
    assert (candidate.name, candidate.items) == (f"{model}/{old.number}", 4)
    assert candidate.bytes >= len(expiry.ARTIFACT) + len("{}")
    assert len(_artifacts(old)) == candidate.items - 1
    versions.delete(candidate, policy, LATER)
    assert _stored(model) == {champion.number, newest.number}
    assert _artifacts(old) == []
    assert mlflow_client().get_run(old.run_id).info.lifecycle_stage == "deleted"
    with pytest.raises(MlflowException):
        mlflow_client().get_logged_model(old.model_id)
    for kept in (champion, newest):
        assert len(_artifacts(kept)) == 3
        assert mlflow_client().get_run(kept.run_id).info.lifecycle_stage == "active"
        assert _deleted_at(model, kept.number) is None
    # Its row stays, and says so; a second deletion and a second plan find nothing.
    assert _deleted_at(model, old.number) is not None
    versions.delete(candidate, policy, LATER)
    assert _planned(model) == []


def test_a_deleted_version_is_named_as_such(model, tmp_path):
    first, second = (expiry.registered(model, tmp_path) for _ in range(2))
    assert second.number == 2
    _delete(model)
    for load in (
        lambda: promotion.promote(model, first.number, reason="test", by="test"),
        lambda: load_registration(model, first.number),
    ):
        with pytest.raises(DataError, match=rf"{model}/1 was deleted from MLflow on \d"):
            load()
    with pytest.raises(DataError, match="was deleted from MLflow"):
        tracking.run_tags(first.run_id)


def test_each_thing_that_needs_a_version_keeps_it(model, tmp_path):
    made = [expiry.registered(model, tmp_path) for _ in range(9)]
    numbers = [version.number for version in made]
    aliased, mirrored, pending, replaced, open_, kept, forever, unused, newest = numbers
    mlflow_client().set_registered_model_alias(model, "shadow", str(aliased))
    stream = uuid4().hex[:8]
    with transaction() as session:
        session.add(ModelAlias(model=model, alias="previous", version=mirrored))
        session.execute(
            sa.text(
                "INSERT INTO nightscore.promotion (model, version, replaced, action, reason, promoted_by, state)"
                " VALUES (:model, :version, :replaced, 'promote', 'test', 'test', 'pending')"
            ),
            {"model": model, "version": pending, "replaced": replaced},
        )
    expiry.scoring_run(f"o{stream}", expiry.in_days(-900), "open", **{model: open_})
    expiry.scoring_run(f"k{stream}", expiry.in_days(30), **{model: kept})
    expiry.scoring_run(f"k{stream}", expiry.in_days(29), **{model: unused})
    expiry.scoring_run(f"f{stream}", expiry.in_days(-900), **{model: forever})
    policy = _policy(model, **{f"k{stream}": 10, f"o{stream}": 10})
    assert _planned(model, policy) == [str(unused)]
    _delete(model, policy)
    assert _stored(model) == set(numbers) - {unused} and newest in _stored(model)


def test_what_is_not_ours_stays(model, tmp_path):
    client = mlflow_client()
    first, second = (expiry.registered(model, tmp_path) for _ in range(2))
    client.delete_model_version_tag(model, str(first.number), "nightscore.sha256")
    run = client.create_run(client.get_experiment_by_name(model).experiment_id)
    client.set_terminated(run.info.run_id)
    assert _planned(model) == []
    # A version of another name came from the run of one that goes.
    third = expiry.registered(model, tmp_path)
    register_model(f"models:/{second.model_id}", f"{model}-copy")
    _delete(model)
    assert _stored(model) == {first.number, third.number}
    assert len(_artifacts(second)) == 3
    assert client.get_run(second.run_id).info.lifecycle_stage == "active"


def test_a_run_without_a_version_goes_and_one_that_runs_or_is_repeated_stays(model, tmp_path):
    failed, _ = expiry.logged_run(model, tmp_path, "s3://none/1.parquet")
    original, _ = expiry.logged_run(model, tmp_path, "s3://none/1.parquet")
    running, _ = expiry.logged_run(
        model, tmp_path, "s3://none/1.parquet", **{"nightscore.repeats": original}
    )
    mlflow_client().update_run(running, "RUNNING")
    expiry.registered(model, tmp_path)
    (candidate,) = versions.candidates(_policy(model), LATER)
    assert candidate.name == f"{model}/runs/{failed}"
    with in_use(TRAINING_RUN, failed), pytest.raises(StillNeededError, match="being registered"):
        versions.delete(candidate, _policy(model), LATER)
    versions.delete(candidate, _policy(model), LATER)
    versions.delete(candidate, _policy(model), LATER)
    states = {
        run: mlflow_client().get_run(run).info.lifecycle_stage
        for run in (failed, original, running)
    }
    assert list(states.values()) == ["deleted", "active", "active"]


def test_a_promotion_between_plan_and_deletion_keeps_the_version(model, tmp_path):
    first, _ = (expiry.registered(model, tmp_path) for _ in range(2))
    (candidate,) = versions.candidates(_policy(model), LATER)
    promotion.promote(model, first.number, reason="test", by="test")
    with pytest.raises(StillNeededError):
        versions.delete(candidate, _policy(model), LATER)
    assert len(_artifacts(first)) == 3 and _deleted_at(model, first.number) is None


@pytest.mark.parametrize("step", ["delete_version", "delete_run"])
@pytest.mark.parametrize("is_done", [False, True])
def test_an_interruption_at_any_step_is_finished_by_the_next_run(
    model, tmp_path, monkeypatch, step, is_done
):
    first, second = (expiry.registered(model, tmp_path) for _ in range(2))
    work = getattr(deletion, step)

    def interrupted(*arguments) -> None:
        if is_done:
            work(*arguments)
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(deletion, step, interrupted)
        with pytest.raises(ServiceError):
            _delete(model)
    # From the first step on, nothing loads or promotes it.
    with pytest.raises(DataError, match="was deleted"):
        promotion.promote(model, first.number, reason="test", by="test")
    _delete(model)
    assert _stored(model) == {second.number}
    assert _artifacts(first) == []
    assert mlflow_client().get_run(first.run_id).info.lifecycle_stage == "deleted"
    assert _planned(model) == []


def test_the_artifacts_of_an_interrupted_run_are_found_again(model, tmp_path, monkeypatch):
    first, second = (expiry.registered(model, tmp_path) for _ in range(2))
    client = mlflow_client()

    def fail(run_id: str) -> None:
        raise ServiceError("made to fail")

    with monkeypatch.context() as broken:
        broken.setattr(client, "delete_run", fail)
        with pytest.raises(ServiceError):
            _delete(model)
    assert _planned(model) == [f"runs/{first.run_id}"]
    _delete(model)
    assert client.get_run(first.run_id).info.lifecycle_stage == "deleted"
    assert _stored(model) == {second.number}


def test_the_audit_is_never_touched(model, tmp_path):
    first, second, _ = (expiry.registered(model, tmp_path) for _ in range(3))
    promotion.promote(model, first.number, reason="test", by="test")
    promotion.promote(model, second.number, reason="test", by="test")
    audit = sa.text("SELECT * FROM nightscore.promotion WHERE model = :m ORDER BY promotion_id")
    with transaction() as session:
        before = session.execute(audit, {"m": model}).all()
    _delete(model)
    with transaction() as session:
        assert session.execute(audit, {"m": model}).all() == before
        assert session.get(ModelVersion, (model, first.number)) is not None
