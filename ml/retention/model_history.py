"""Which versions and runs of a model nothing needs any more: the rules, without any service."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from ml.registry.deletion import StoredRun, StoredVersion


@dataclass(frozen=True)
class RecordedVersion:
    """A version in Nightscore's tables.

    Attributes:
        version: its number.
        run_id: the training run that it came from.
        registered_at: when it was registered.
        deleted_at: when its deletion began; None if it did not.
    """

    version: int
    run_id: str
    registered_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True)
class RecordedPromotion:
    """An entry of the audit, as far as it concerns what may be deleted.

    Attributes:
        version: the version that became champion.
        replaced: the champion before; None when there was none.
        promoted_at: when.
        is_pending: whether it may still take effect.
    """

    version: int
    replaced: int | None
    promoted_at: datetime
    is_pending: bool


@dataclass(frozen=True)
class ModelHistory:
    """All that decides about a model's versions and runs, at one moment.

    Attributes:
        model: the model's name.
        stored: its versions in MLflow.
        recorded: its versions in Nightscore's tables.
        aliased: versions that an alias names, in MLflow or in the tables.
        promotions: the model's entries of the audit.
        pinned: versions of scoring runs that are open, or of a night that is kept.
        runs: the runs in MLflow's experiment of the model.
    """

    model: str
    stored: Sequence[StoredVersion]
    recorded: Sequence[RecordedVersion]
    aliased: frozenset[int]
    promotions: Sequence[RecordedPromotion]
    pinned: frozenset[int]
    runs: Sequence[StoredRun]

    def unused_versions(self, first_day: date) -> list[StoredVersion]:
        """Return the versions that may be deleted, oldest first.

        Args:
            first_day: the first day (UTC) whose versions are kept.
        """
        needed = self._needed_versions(first_day)
        begun = {row.version for row in self.recorded if row.deleted_at is not None}
        unused = [
            entry
            for entry in self.stored
            if entry.is_ours
            and entry.version not in needed
            # What was begun is finished: nothing loads or promotes such a version.
            and (entry.version in begun or entry.registered_at.date() < first_day)
        ]
        return sorted(unused, key=lambda entry: entry.version)

    def unused_runs(self, first_day: date) -> list[StoredRun]:
        """Return the runs that may be deleted, by their ids, besides those of unused versions.

        Args:
            first_day: the first day (UTC) whose runs are kept.
        """
        needed = {entry.run_id for entry in self.stored}
        # Registered, but not in MLflow's registry: the tables keep its run while it may be loaded.
        needed |= {row.run_id for row in self.recorded if row.deleted_at is None}
        needed |= self.repeated_runs(first_day)
        return [run for run in self.runs if run.run_id not in needed and _is_old(run, first_day)]

    def repeated_runs(self, first_day: date) -> set[str]:
        """Return the runs that a run which is kept for its age compares itself with."""
        return {run.repeats for run in self.runs if run.repeats and not _is_old(run, first_day)}

    def _needed_versions(self, first_day: date) -> set[int]:
        needed = set(self.aliased | self.pinned)
        for entry in self.promotions:
            if entry.is_pending or entry.promoted_at.date() >= first_day:
                needed |= {entry.version} | ({entry.replaced} if entry.replaced else set())
        alive = [row.version for row in self.recorded if row.deleted_at is None]
        if versions := [entry.version for entry in self.stored] + alive:
            needed.add(max(versions))
        return needed


def _is_old(run: StoredRun, first_day: date) -> bool:
    return run.is_ours and not run.active and run.last_used.date() < first_day
