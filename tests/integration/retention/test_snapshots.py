"""Snapshots that nothing needs go, with the real S3 server, MLflow and Postgres."""

import threading
from hashlib import md5
from uuid import uuid4

import pytest

from ml.config.retention import Retention
from ml.data import dataset
from ml.data.snapshot import load_snapshot, take_snapshot
from ml.database.advisory import SNAPSHOTS, in_use
from ml.registry.client import mlflow_client
from ml.retention import snapshots
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.storage.object_store import ObjectInfo, object_store
from tests.support import expiry, synthetic_images

POLICY = Policy(Retention(snapshots=7))
LATER = expiry.in_days(8)


@pytest.fixture
def names(services, storage):
    """Puts a snapshot of each name, and gives its URI."""

    def put(*names: str) -> list[str]:
        uris = [
            f"{storage}/snapshots/shades/{md5(name.encode()).hexdigest()}.parquet" for name in names
        ]
        for uri in uris:
            object_store().put(uri, b"a list")
        return uris

    return put


def _info(uri: str) -> ObjectInfo:
    (info,) = (
        info
        for page in object_store().list_pages(uri.rpartition("/")[0])
        for info in page
        if info.uri == uri
    )
    return info


def test_those_that_a_version_or_a_run_needs_stay(names, storage, tmp_path):
    of_version, of_run, of_running, free = names("version", "run", "running", "free")
    other = f"{storage}/snapshots/shades/notes.txt"
    object_store().put(other, b"not ours")
    model = f"needs-{uuid4().hex[:8]}"
    version = expiry.registered(model, tmp_path, of_version)
    mlflow_client().delete_run(version.run_id)  # the table alone still names it
    expiry.logged_run(model, tmp_path, of_run)
    running, _ = expiry.logged_run(model, tmp_path, of_running)
    mlflow_client().update_run(running, "RUNNING")
    (candidate,) = snapshots.candidates(POLICY, LATER)
    assert (candidate.name, candidate.items, candidate.bytes) == (free, 1, 6)
    snapshots.delete(candidate, POLICY, LATER)
    snapshots.delete(candidate, POLICY, LATER)
    assert not object_store().exists(free)
    assert all(map(object_store().exists, (of_version, of_run, of_running, other)))


def test_a_new_one_stays_since_its_training_may_not_have_begun(names):
    names("new")
    assert list(snapshots.candidates(POLICY, expiry.in_days(7))) == []
    assert list(snapshots.candidates(Policy(Retention(snapshots=1)), expiry.today())) == []
    assert list(snapshots.candidates(Policy(Retention()), expiry.in_days(900))) == []


def test_what_is_needed_between_plan_and_deletion_stays(names, tmp_path):
    (uri,) = names("soon")
    (candidate,) = snapshots.candidates(POLICY, LATER)
    expiry.logged_run(f"soon-{uuid4().hex[:8]}", tmp_path, uri)
    with pytest.raises(StillNeededError):
        snapshots.delete(candidate, POLICY, LATER)
    assert object_store().exists(uri)


def test_while_a_snapshot_is_taken_none_of_its_data_set_is_deleted(names):
    (uri,) = names("busy")
    (candidate,) = snapshots.candidates(POLICY, LATER)
    with in_use(SNAPSHOTS, "shades"), pytest.raises(StillNeededError):
        snapshots.delete(candidate, POLICY, LATER)
    snapshots.delete(candidate, POLICY, LATER)
    assert not object_store().exists(uri)


def test_a_snapshot_that_is_taken_again_is_new_and_the_same(services, storage, tmp_path):
    synthetic_images.write_dataset(tmp_path / "shades", "shades")
    dataset.import_(tmp_path / "shades", "shades", storage=storage)
    first = take_snapshot("shades", storage, holdout_share=0.3)
    before, rows = _info(first), load_snapshot(first).rows
    ticked = threading.Event()
    ticked.wait(1.1)  # S3 keeps whole seconds
    assert take_snapshot("shades", storage, holdout_share=0.3) == first
    after = _info(first)
    assert after.modified > before.modified and after.etag == before.etag
    assert load_snapshot(first).rows == rows


def test_only_a_snapshot_is_deleted(names, storage):
    names("one")
    (candidate,) = snapshots.candidates(POLICY, LATER)
    for name in (storage, f"{storage}/datasets/shades/1.parquet", f"{storage}/snapshots/shades"):
        with pytest.raises(ValueError):
            snapshots.delete(type(candidate)(**{**vars(candidate), "name": name}), POLICY, LATER)
