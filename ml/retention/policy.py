"""The limits of `nightscore.yaml` as dates: what is older than these may be deleted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta

from ml.config.retention import (
    KINDS,
    ModelRetention,
    NightKind,
    Retention,
    StreamRetention,
    overridden,
)
from ml.config.schema import Configuration


@dataclass(frozen=True)
class Policy:
    """The limits in force. A day that a method returns is itself kept; None keeps everything.

    Attributes:
        default: The limits of streams and models that are not in `streams` and `models`, such as a
            stream in the database that `nightscore.yaml` names no longer.
        streams: Stream → its limits, with the defaults filled in.
        models: Model → its limits, with the defaults filled in.
    """

    default: Retention
    streams: Mapping[str, StreamRetention] = field(default_factory=dict)
    models: Mapping[str, ModelRetention] = field(default_factory=dict)

    def first_night(self, kind: NightKind, stream: str, today: date) -> date | None:
        """Return the first night of a stream whose things of a kind are kept.

        Args:
            kind: What is kept.
            stream: Any stream, whether the configuration names it or not.
            today: The day (UTC) from which the limit counts back.
        """
        return _back(today, self.streams.get(stream, self.default).of(kind))

    def has_passed(self, kind: NightKind, stream: str, night: date, today: date) -> bool:
        """Return whether a stream's things of a kind may be deleted of a night."""
        first = self.first_night(kind, stream, today)
        return first is not None and night < first

    def first_snapshot_day(self, today: date) -> date | None:
        """Return the first day whose snapshots are kept even if no version needs them."""
        return _back(today, self.default.snapshots)

    def first_version_day(self, model: str, today: date) -> date | None:
        """Return the first day whose versions of a model are kept even if nothing uses them."""
        return _back(today, self.models.get(model, self.default).versions)

    def is_empty(self) -> bool:
        """Return whether no limit is set, so that nothing is ever deleted."""
        sections = (self.default, *self.streams.values(), *self.models.values())
        return all(getattr(section, kind, None) is None for section in sections for kind in KINDS)


def policy_of(configuration: Configuration) -> Policy:
    """Return the limits that a configuration sets."""
    default = configuration.retention
    return Policy(
        default,
        {
            name: overridden(default, stream.retention)
            for name, stream in configuration.streams.items()
        },
        {
            name: overridden(default, model.retention)
            for name, model in configuration.models.items()
        },
    )


def _back(today: date, limit: int | None) -> date | None:
    return None if limit is None else today - timedelta(days=limit)
