"""Snapshots of data sets that no version, no run in MLflow and no training needs."""

import re
from collections.abc import Iterator
from datetime import date

from ml.config.loading import configuration
from ml.data.snapshot import dataset_of
from ml.database.advisory import SNAPSHOTS, try_exclusive
from ml.database.connection import rows
from ml.registry import deletion
from ml.retention.candidate import Candidate
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.retention.session import transaction
from ml.storage.object_store import ObjectInfo, object_store

KIND = "snapshots"
_FILE = re.compile(r"/([0-9a-f]{32})\.parquet$")


def candidates(policy: Policy, today: date) -> Iterator[Candidate]:
    """Yield the snapshots that may be deleted.

    A version that is not deleted and a run that MLflow has need their snapshot. A training that has
    not begun yet needs one that was taken since the limit; taking it again makes it new.

    Args:
        policy: the limits.
        today: the day (UTC) from which they count back.

    Raises:
        ServiceError: S3, MLflow or Postgres failed.
    """
    first = policy.first_snapshot_day(today)
    if first is None:
        return
    # Listed first: what is taken meanwhile is not in the list.
    old = [info for info in _listed(_folder()) if _is_snapshot(info.uri) and _is_old(info, first)]
    needed = _needed() if old else set()
    for info in old:
        if info.uri not in needed:
            reason = f"no version and no run needs it, and it was last taken before {first}"
            yield Candidate(KIND, info.uri, None, None, 1, info.size, reason)


def delete(candidate: Candidate, policy: Policy, today: date) -> None:
    """Delete a snapshot, unless it is needed by now; it is no error if it is gone.

    Args:
        candidate: what to delete.
        policy: the limits.
        today: the day (UTC) from which they count back.

    Raises:
        StillNeededError: it was taken again, is being taken, or something is trained from it.
        ServiceError: S3, MLflow or Postgres failed.
    """
    uri, first = candidate.name, policy.first_snapshot_day(today)
    if candidate.kind != KIND or not _is_snapshot(uri):
        raise ValueError(f"{candidate} is no snapshot")
    with transaction() as session:
        if not try_exclusive(session, SNAPSHOTS, dataset_of(uri)):
            raise StillNeededError(f"A snapshot of {dataset_of(uri)} is being taken.")
        # Listed, so that the login need not read any object.
        folder = uri.rpartition("/")[0]
        info = next((info for info in _listed(folder) if info.uri == uri), None)
        if info is None:
            return
        if first is None or not _is_old(info, first) or uri in _needed(uri):
            raise StillNeededError(f"The snapshot {uri} is needed.")
        object_store().delete([uri])


def _folder() -> str:
    return f"{configuration().storage}/{KIND}"


def _listed(folder: str) -> Iterator[ObjectInfo]:
    return (info for page in object_store().list_pages(folder) for info in page)


def _is_snapshot(uri: str) -> bool:
    return uri.startswith(f"{_folder()}/") and _FILE.search(uri) is not None


def _is_old(info: ObjectInfo, first: date) -> bool:
    return info.modified.date() < first


def _needed(uri: str | None = None) -> set[str]:
    """The snapshots that versions and runs need; of one snapshot, whether it is among them."""
    match = _FILE.search(uri or "")
    runs = deletion.runs_with_snapshot(match[1] if match else "")
    with transaction() as session:
        versions = rows(session, "retention/sql/snapshot_versions", uri=uri)
    return {run.snapshot_uri for run in runs} | {row["snapshot_uri"] for row in versions}
