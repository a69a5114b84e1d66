"""Registered versions: where their files are, and how to change them for a while."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
import torch
from sqlalchemy.orm import Session

from ml.database.connection import transaction
from ml.database.tables import ModelVersion
from ml.registry import client, programs, promotion, tracking, versions
from ml.retrain import steps as retrain
from ml.settings import settings, state_folder
from ml.storage.object_store import object_store


def query(sql: str, **values) -> list[dict]:
    """The rows of a statement, as mappings."""
    with transaction() as session:
        return [dict(row) for row in session.execute(sa.text(sql), values).mappings()]


def tensors(run_id: str) -> dict[str, torch.Tensor]:
    """The weights and buffers of the program that a run has logged."""
    path, _ = programs.fetch_from_run(run_id)
    state: dict[str, torch.Tensor] = torch.export.load(path).state_dict
    return state


def folder(model: str, version: int) -> Path:
    """The folder in which this machine caches a version's program."""
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
    """Let this machine have no cached files of a version; the old ones return afterwards."""
    cached = folder(model, version)
    cached.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, since such contexts may be nested.
    with tempfile.TemporaryDirectory(dir=cached.parent) as aside:
        if was_cached := cached.exists():
            cached.rename(Path(aside) / cached.name)
        try:
            yield
        finally:
            shutil.rmtree(cached, ignore_errors=True)
            if was_cached:
                (Path(aside) / cached.name).rename(cached)


def run_of(model: str, version: int) -> str:
    """The training run that a version came from."""
    return client.mlflow_client().get_model_version(model, str(version)).run_id


def artifact(model: str, version: int, name: str) -> str:
    """The URI of a file of a version's logged model, in the bucket."""
    document = tracking.read_json(run_of(model, version), "program.json")
    location = client.mlflow_client().get_logged_model(document["model_id"]).artifact_location
    return "s3://mlflow/artifacts" + location.removeprefix("mlflow-artifacts:") + "/" + name


@contextmanager
def changed_object(uri: str, change: Callable[[bytes], bytes | None]) -> Iterator[None]:
    """Change an object, or delete it when `change` returns None; the old one returns afterwards."""
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
    """Open a transaction as the tables' owner: the writer may not delete a version."""
    with Session(sa.create_engine(settings().require_owner_url())) as session, session.begin():
        yield session


@contextmanager
def changed_row(model: str, version: int, **other) -> Iterator[None]:
    """Change columns of a version's row, or delete the row when none is named.

    The old row returns afterwards.
    """
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
