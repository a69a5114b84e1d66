"""Heat maps and reports in S3 of nights whose limit has passed.

Their keys name stream and night: `heatmaps/STREAM/dt=NIGHT/...` and `reports/STREAM/dt=NIGHT/...`.
So nights that are kept are never listed.
"""

import re
from collections.abc import Callable, Iterator
from datetime import date

from ml.config.loading import configuration
from ml.config.retention import NightKind
from ml.retention.candidate import Candidate
from ml.retention.guard import holder, open_runs
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy
from ml.retention.session import transaction
from ml.storage.object_store import object_store

KINDS: tuple[NightKind, ...] = ("heatmaps", "reports")
_NIGHT = re.compile(r"dt=(\d{4}-\d\d-\d\d)")


def candidates(policy: Policy, today: date) -> Iterator[Candidate]:
    """Yield the folders of nights that may be deleted, one by kind, stream and night.

    Streams are those that have a folder, also if `nightscore.yaml` does not name them.

    Args:
        policy: the limits.
        today: the day (UTC) from which they count back.

    Raises:
        ServiceError: S3 or Postgres failed.
    """
    for kind in KINDS:
        if _has_limit(policy, kind):
            for folder in object_store().list_folders(f"{configuration().storage}/{kind}"):
                stream = folder.rpartition("/")[2]
                first = policy.first_night(kind, stream, today)
                if first is not None:
                    yield from _of_stream(kind, stream, folder, first)


def delete(
    candidate: Candidate,
    policy: Policy,
    today: date,
    on_progress: Callable[[int], None] = lambda objects: None,
) -> None:
    """Delete the objects of a night; repeating it deletes what is left.

    Args:
        candidate: what to delete.
        policy: the limits.
        today: the day (UTC) from which they count back.
        on_progress: is called with the number of objects that are deleted so far.

    Raises:
        StillNeededError: the limit keeps it, or an open run reaches the night.
        ServiceError: S3 or Postgres failed; what was deleted stays deleted.
    """
    kind, stream, night = _folder_fields(candidate)
    first = policy.first_night(kind, stream, today)
    if first is None or night >= first:
        raise StillNeededError(f"The limit `{kind}` of {stream} keeps the night {night}.")
    with transaction() as session:
        if holder(open_runs(session), night, stream):
            raise StillNeededError(f"A scoring run that is open reaches {stream}, night {night}.")
    deleted = 0
    for page in object_store().list_pages(candidate.name):
        object_store().delete(info.uri for info in page)
        deleted += len(page)
        on_progress(deleted)


def _has_limit(policy: Policy, kind: NightKind) -> bool:
    return any(limits.of(kind) for limits in (policy.default, *policy.streams.values()))


def _of_stream(kind: NightKind, stream: str, folder: str, first: date) -> Iterator[Candidate]:
    with transaction() as session:
        runs = open_runs(session)
    for uri in object_store().list_folders(folder):
        night = _night_of(uri)
        if night is None or night >= first or holder(runs, night, stream):
            continue
        sizes = [info.size for page in object_store().list_pages(uri) for info in page]
        reason = f"the nights of {stream} before {first} have passed the limit `{kind}`"
        yield Candidate(kind, uri, stream, night, len(sizes), sum(sizes), reason)


def _folder_fields(candidate: Candidate) -> tuple[NightKind, str, date]:
    """The kind, stream and night of a folder, with which its name must agree."""
    for kind in KINDS:
        if (
            candidate.kind == kind
            and candidate.stream
            and candidate.night
            and candidate.name
            == f"{configuration().storage}/{kind}/{candidate.stream}/dt={candidate.night}"
        ):
            return kind, candidate.stream, candidate.night
    raise ValueError(f"{candidate} is no folder of a night's heat maps or reports")


def _night_of(uri: str) -> date | None:
    """The night that the name of a folder says; None if it is another folder."""
    match = _NIGHT.fullmatch(uri.rpartition("/")[2])
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None
