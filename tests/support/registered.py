"""Registered versions: where their parts are, and how to change one for a while."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.database.connection import transaction
from ml.database.tables import ModelVersion
from ml.registry import client, promotion, tracking, versions
from ml.retrain import steps as retrain
from ml.settings import settings, state_folder
from ml.storage.object_store import object_store


def query(sql: str, **values) -> list[dict]:
    """The rows of a statement, as mappings."""
    with transaction() as session:
        return [dict(row) for row in session.execute(sa.text(sql), values).mappings()]


def folder(model: str, version: int) -> Path:
    """Where this machine keeps a version's program."""
    return state_folder() / "cache" / "programs" / model / str(version)


def other_than_champion(model: str) -> int:
    """A registered version of a model that is not the champion; one is trained if there is none."""
    champion = promotion.champion(model)
    for version in versions.list_versions(model):
        if version != champion:
            return version
    trained = retrain.retrain(model)["version"]
    promotion.promote(model, champion, reason="as it was", by="test")
    return int(trained)


@contextmanager
def uncached(model: str, version: int) -> Iterator[None]:
    """This machine has no copy of a version; afterwards it has the one it had before."""
    kept = folder(model, version)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, as one of these may be opened within another.
    with tempfile.TemporaryDirectory(dir=kept.parent) as aside:
        if had_one := kept.exists():
            kept.rename(Path(aside) / kept.name)
        try:
            yield
        finally:
            shutil.rmtree(kept, ignore_errors=True)
            if had_one:
                (Path(aside) / kept.name).rename(kept)


def run_of(model: str, version: int) -> str:
    """The training run that a version came from."""
    return client.mlflow_client().get_model_version(model, str(version)).run_id


def artifact(model: str, version: int, name: str) -> str:
    """The URI of a file of a version's logged model, in the bucket."""
    stored = tracking.read_json(run_of(model, version), "program.json")
    location = client.mlflow_client().get_logged_model(stored["model_id"]).artifact_location
    return "s3://mlflow/artifacts" + location.removeprefix("mlflow-artifacts:") + "/" + name


@contextmanager
def changed_object(uri: str, change: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """An object is another one, or gone when `change` gives None; afterwards it is as before."""
    content, _ = object_store().get(uri)
    changed = change(content)
    assert changed != content
    try:
        if changed is None:
            object_store().delete([uri])
        else:
            object_store().put(uri, changed)
        yield
    finally:
        object_store().put(uri, content)


@contextmanager
def as_owner() -> Iterator[Session]:
    """A transaction of the tables' owner: the writer may not remove a version."""
    with Session(sa.create_engine(settings().require_owner_url())) as session, session.begin():
        yield session


@contextmanager
def changed_row(model: str, version: int, **other) -> Iterator[None]:
    """A version's row has other values, or is not there when none are given."""
    with as_owner() as session:
        row = session.get(ModelVersion, (model, version))
        names = [column.key for column in ModelVersion.__table__.columns]
        before = {name: getattr(row, name) for name in names}
        if other:
            for name, value in other.items():
                setattr(row, name, value)
        else:
            session.delete(row)
    try:
        yield
    finally:
        with as_owner() as session:
            session.merge(ModelVersion(**before))
