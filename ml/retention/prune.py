"""What may be deleted, and its deletion: each candidate by itself, recorded, safe to repeat.

Nothing else is deleted at the same time. A failure of one candidate does not keep the others from
being deleted; a run that has begun to look at a night keeps that night for the next time.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib import import_module
from typing import Protocol, cast

from ml.config.schema import Configuration
from ml.errors import ConfigurationError, ServiceError
from ml.retention import session
from ml.retention.candidate import Candidate
from ml.retention.needed import StillNeededError
from ml.retention.policy import Policy, policy_of
from ml.retention.record import recorded

log = logging.getLogger(__name__)

# Area → the modules that know its candidates, in the order in which they delete: a version goes
# before the snapshot that nobody needs then.
AREAS: dict[str, tuple[str, ...]] = {
    "database": ("partitions",),
    "objects": ("objects",),
    "registry": ("versions", "snapshots"),
}


class _Source(Protocol):
    def candidates(self, policy: Policy, today: date) -> Iterable[Candidate]: ...

    def delete(self, candidate: Candidate, policy: Policy, today: date) -> None: ...


@dataclass(frozen=True)
class Planned:
    """A candidate.

    Attributes:
        candidate: What may be deleted.
        delete: Deletes it.
        error: Why an area could not be looked at; the candidate then stands for all of it.
    """

    candidate: Candidate
    delete: Callable[[], None]
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        candidate: What was to be deleted.
        state: `deleted`; `kept`, since it was in use again; or `failed`.
        detail: Why it was kept, or the error; empty when it was deleted.
    """

    candidate: Candidate
    state: str
    detail: str = ""


def policy(configuration: Configuration) -> Policy:
    """Return the limits in force.

    Raises:
        ConfigurationError: No limit is set, so there is nothing that could be deleted.
    """
    limits = policy_of(configuration)
    if limits.is_empty():
        raise ConfigurationError(
            "There is nothing to delete: no limit is set in nightscore.yaml.",
            "docs/retention.md says how to set one.",
        )
    return limits


def plan(
    limits: Policy, today: date, *, stream: str | None = None, areas: Sequence[str] = tuple(AREAS)
) -> Iterator[Planned]:
    """Give what may be deleted, in the order in which it should be.

    Args:
        limits: The limits in force.
        today: The day (UTC) from which they count back.
        stream: Only what belongs to this stream alone.
        areas: Keys of `AREAS`.
    """
    for module in (module for area in areas for module in AREAS[area]):
        source = cast(_Source, import_module(f"ml.retention.{module}"))
        try:
            for candidate in source.candidates(limits, today):
                if stream in (None, candidate.stream):
                    yield Planned(candidate, partial(source.delete, candidate, limits, today))
        except ServiceError as error:
            # The other areas may be reached nevertheless.
            nothing = Candidate(module, module, None, None, 0, 0, "could not be looked at")
            yield Planned(nothing, partial(_raise, error), str(error))


def _raise(error: Exception) -> None:
    raise error


def delete_all(planned: Iterable[Planned], by: str) -> Iterator[Outcome]:
    """Delete one candidate after the other; gives what became of each when it is done.

    Args:
        planned: What to delete; read as a whole before the first deletion.
        by: Who deletes, for the record.

    Raises:
        ConfigurationError: The login does not own the tables by night.
        ServiceError: Another process deletes, or Postgres cannot be reached.
    """
    with session.alone():
        for item in list(planned):
            yield _delete(item, by)


def _delete(item: Planned, by: str) -> Outcome:
    candidate = item.candidate
    try:
        with recorded(candidate, by):
            item.delete()
    except StillNeededError as reason:
        log.info("Kept %s: %s", candidate.name, reason)
        return Outcome(candidate, "kept", str(reason))
    except Exception as error:
        # Whatever it was: it is recorded, and the next candidate may be elsewhere.
        log.warning("Could not delete %s: %s", candidate.name, error)
        return Outcome(candidate, "failed", str(error))
    log.info("Deleted %s of kind %s", candidate.name, candidate.kind)
    return Outcome(candidate, "deleted")
