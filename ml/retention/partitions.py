"""Nights in Postgres that have passed their limits: which may be deleted, and their deletion.

A night's partitions go whole when every stream with rows in them has passed its limit. Until then
the rows of a stream with a shorter limit are deleted in batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.orm import Session

from ml.config.retention import NightKind
from ml.database.connection import rows, statement
from ml.retention import session as maintainer
from ml.retention.candidate import Candidate
from ml.retention.guard import OpenRun, holder, open_runs
from ml.retention.needed import StillNeededError
from ml.retention.night import TABLES, Partition, by_night, partitions, streams
from ml.retention.policy import Policy
from ml.retention.session import run_composed

# Rows of a transaction. It takes a tenth of a second, and holds no lock that a night waits for.
_BATCH = 5_000
# Kind → the table that says which streams have rows of a night, and the tables that go.
_TABLES: dict[NightKind, tuple[str, tuple[str, ...]]] = {
    "manifests": ("manifest", ("manifest",)),
    "results": ("image", TABLES),
}
# Results before their images.
_DELETIONS = (
    "retention/sql/delete_predictions",
    "retention/sql/delete_rejections",
    "retention/sql/delete_images",
)
_COUNTS = {"manifests": "retention/sql/count_manifest", "results": "retention/sql/count_images"}
# A session that says so deletes rejections without changing the sums of their nights.
_KEEP_SUMS = sa.text("SELECT set_config('nightscore.retention', 'on', true)")


@dataclass(frozen=True)
class WholeNight(Candidate):
    """The partitions of a night, which go as a whole.

    Attributes:
        tables: The partitions in the order in which they go, as (table, partition).
    """

    tables: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PartOfNight(Candidate):
    """The rows that one stream has in a night."""


@dataclass(frozen=True)
class OldManifests(Candidate):
    """The partition with the manifests of all nights before `night`, when it is empty."""


@dataclass(frozen=True)
class Detached(Candidate):
    """A partition that a deletion before has detached and not dropped."""


def candidates(policy: Policy, today: date) -> Iterator[Candidate]:
    """Give what has passed its limit, from the oldest night on; manifests before results.

    Args:
        policy: The limits.
        today: The day (UTC) from which they count back.
    """
    with maintainer.autocommit() as connection:
        found = partitions(connection)
        plan = _Plan(connection, policy, today, open_runs(connection))
        yield from _left_detached(connection)
        for partition in found:
            if partition.table == "manifest" and partition.first_night is None:
                yield from plan.old_manifests(partition)
        nights = by_night(found)
        for kind in ("manifests", "results"):
            for night, tables in nights.items():
                if night < today:
                    yield from plan.of_night(kind, night, tables)


@dataclass(frozen=True)
class _Plan:
    connection: sa.Connection
    policy: Policy
    today: date
    runs: Sequence[OpenRun]

    def of_night(
        self, kind: NightKind, night: date, tables: dict[str, Partition]
    ) -> Iterator[Candidate]:
        """Give what may go of a night: all of it, or the rows of some streams."""
        named_by, names = _TABLES[kind]
        going = [tables[name] for name in names if name in tables]
        if not going or not self._may_have_passed(kind, night):
            return
        present = streams(self.connection, named_by, night)
        passed = [
            stream for stream in present if self.policy.has_passed(kind, stream, night, self.today)
        ]
        if not present and not self._has_passed_for_all(kind, night):
            return
        if len(passed) == len(present) and holder(self.runs, night) is None:
            yield self._whole(kind, night, going, passed)
            return
        for stream in passed:
            if holder(self.runs, night, stream) is None:
                yield self._part(kind, night, stream, going)

    def old_manifests(self, partition: Partition) -> Iterator[Candidate]:
        """Give the manifests of each stream and night in the partition of all nights before one."""
        before = {"next_night": partition.next_night}
        found = rows(self.connection, "retention/sql/old_manifest_nights", **before)
        for row in found:
            night, stream = row["night"], row["stream"]
            is_held = holder(self.runs, night, stream) is not None
            if self.policy.has_passed("manifests", stream, night, self.today) and not is_held:
                yield self._part("manifests", night, stream, [partition])
        is_over = partition.next_night <= self.today
        if is_over and not found and not _holds_rows(self.connection, partition.next_night):
            reason = "it is empty, and no night is added to it"
            yield OldManifests(
                "manifests", partition.name, None, partition.next_night, 0, partition.bytes, reason
            )

    def _whole(
        self, kind: NightKind, night: date, going: list[Partition], passed: list[str]
    ) -> WholeNight:
        names = [(partition.table, partition.name) for partition in going]
        who = f"of {', '.join(passed)}" if passed else "of every stream"
        return WholeNight(
            kind,
            ", ".join(name for _, name in names),
            passed[0] if len(passed) == 1 else None,
            night,
            going[-1].rows,
            sum(partition.bytes for partition in going),
            f"the limit {who} has passed",
            tuple(names),
        )

    def _part(
        self, kind: NightKind, night: date, stream: str, going: list[Partition]
    ) -> PartOfNight:
        count = statement(_COUNTS[kind])
        items = self.connection.scalar(count, {"night": night, "stream": stream}) or 0
        total = max(going[-1].rows, items, 1)
        return PartOfNight(
            kind,
            f"rows of {stream} in {night}",
            stream,
            night,
            items,
            sum(partition.bytes for partition in going) * items // total,
            f"the limit of {stream} has passed, and not that of others",
        )

    def _may_have_passed(self, kind: NightKind, night: date) -> bool:
        """Whether any limit has passed; without it, the night need not be looked at."""
        sections = (self.policy.default, *self.policy.streams.values())
        limits = [limit for section in sections if (limit := section.of(kind)) is not None]
        return bool(limits) and night < self.today - timedelta(days=min(limits))

    def _has_passed_for_all(self, kind: NightKind, night: date) -> bool:
        """Whether no stream could still want a night that is empty."""
        sections = self.policy.streams.values() or (self.policy.default,)
        return all(
            (limit := section.of(kind)) is not None and night < self.today - timedelta(days=limit)
            for section in sections
        )


def delete(candidate: Candidate, policy: Policy, today: date) -> None:
    """Delete what a candidate names; what is gone already is no error.

    Args:
        candidate: What to delete.
        policy: The limits.
        today: The day (UTC) from which they count back.

    Raises:
        StillNeededError: A run looks at the night now, or it has rows that a limit keeps.
        ServiceError: Postgres cannot be reached, or others held locks for too long.
    """
    match candidate:
        case WholeNight():
            _delete_whole(candidate, policy, today)
        case PartOfNight(
            kind="manifests" | "results" as kind, night=date() as night, stream=str() as stream
        ):
            _require_passed(policy, kind, stream, night, today)
            if kind == "manifests":
                _delete_manifest(night, stream)
            else:
                _delete_images(night, stream)
        case OldManifests():
            _delete_old_manifests(candidate)
        case Detached():
            with maintainer.autocommit() as connection:
                _drop(connection, candidate.name)


def _left_detached(connection: sa.Connection) -> Iterator[Detached]:
    reason = "a deletion that was interrupted has detached it"
    for row in rows(connection, "retention/sql/left_detached"):
        yield Detached(
            row["kind"],
            row["name"],
            row["stream"],
            row["night"],
            row["rows"],
            row["bytes"],
            reason,
        )


def _delete_whole(candidate: WholeNight, policy: Policy, today: date) -> None:
    night = candidate.night
    assert night is not None
    kind: NightKind = "manifests" if candidate.kind == "manifests" else "results"
    named_by, _ = _TABLES[kind]
    with maintainer.autocommit() as connection:
        for table, partition in candidate.tables:
            # Asked before each, since the one before may have taken a while.
            _require_nobody_looks(connection, night)
            for stream in streams(connection, named_by, night):
                _require_passed(policy, kind, stream, night, today)
            _remove(connection, table, partition)


def _require_passed(policy: Policy, kind: NightKind, stream: str, night: date, today: date) -> None:
    if not policy.has_passed(kind, stream, night, today):
        raise StillNeededError(f"The limit `{kind}` of {stream} keeps the night {night}.")


def _delete_old_manifests(candidate: OldManifests) -> None:
    assert candidate.night is not None
    with maintainer.autocommit() as connection:
        if _holds_rows(connection, candidate.night):
            raise StillNeededError(f"{candidate.name} is not empty any more.")
        for run in open_runs(connection):
            if run.first_night < candidate.night:
                raise StillNeededError(
                    f"A run of {run.stream} that is open looks at {run.first_night}."
                )
        _remove(connection, "manifest", candidate.name)


def _holds_rows(connection: sa.Connection, next_night: date) -> bool:
    query = statement("retention/sql/holds_old_manifests")
    return bool(connection.scalar(query, {"next_night": next_night}))


def _remove(connection: sa.Connection, table: str, partition: str) -> None:
    """Detach a partition and drop it, wherever an attempt before has stopped."""

    def detach() -> None:
        # Another one that was interrupted would be in the way.
        parent = {"table_name": table}
        for pending in connection.scalars(statement("retention/sql/pending_partition"), parent):
            _finalize(connection, table, pending)
        state = rows(connection, "retention/sql/partition_state", partition=partition)
        if state and state[0]["is_attached"]:
            _detach(connection, table, partition)

    maintainer.retry(connection, detach, f"The detachment of {partition}")
    _drop(connection, partition)


def _detach(connection: sa.Connection, table: str, partition: str) -> None:
    detach = sql.SQL("ALTER TABLE nightscore.{} DETACH PARTITION nightscore.{} CONCURRENTLY")
    run_composed(connection, detach.format(sql.Identifier(table), sql.Identifier(partition)))


def _finalize(connection: sa.Connection, table: str, partition: str) -> None:
    finalize = sql.SQL("ALTER TABLE nightscore.{} DETACH PARTITION nightscore.{} FINALIZE")
    run_composed(connection, finalize.format(sql.Identifier(table), sql.Identifier(partition)))


def _drop(connection: sa.Connection, partition: str) -> None:
    drop = sa.select(sa.func.nightscore.drop_detached(partition))
    maintainer.retry(connection, lambda: connection.execute(drop), f"The deletion of {partition}")


def _delete_images(night: date, stream: str) -> None:
    """Delete a stream's images of a night, each with its results in one transaction."""
    with maintainer.autocommit() as connection:
        if stream in streams(connection, "manifest", night):
            raise StillNeededError(f"{stream} still has a manifest of {night}.")
    after: int | None = -1
    while after is not None:
        with maintainer.transaction() as session:
            after = _delete_image_batch(session, night, stream, after)


def _delete_image_batch(session: Session, night: date, stream: str, after: int) -> int | None:
    """Delete the next images; returns the last one's number, None when there was none."""
    _require_nobody_looks(session, night, stream)
    session.execute(_KEEP_SUMS)
    place = {"night": night, "stream": stream, "after": after, "batch": _BATCH}
    image_ids = list(session.scalars(statement("retention/sql/next_images"), place))
    if not image_ids:
        return None
    for name in _DELETIONS:
        session.execute(statement(name), {"night": night, "image_ids": image_ids})
    return int(image_ids[-1])


def _delete_manifest(night: date, stream: str) -> None:
    """Delete the manifests of a stream's runs, as far as they name a night."""
    place = {"night": night, "stream": stream, "batch": _BATCH}
    deleted = _BATCH
    while deleted == _BATCH:
        with maintainer.transaction() as session:
            _require_nobody_looks(session, night, stream)
            result = session.execute(statement("retention/sql/delete_manifest"), place)
            deleted = result.rowcount  # type: ignore[attr-defined]


def _require_nobody_looks(
    session: Session | sa.Connection, night: date, stream: str | None = None
) -> None:
    if run := holder(open_runs(session), night, stream):
        raise StillNeededError(f"A run of {run.stream} that is open looks at the night {night}.")
