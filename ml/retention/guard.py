"""Which nights must stay because a run that is open looks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.database.connection import rows


@dataclass(frozen=True)
class OpenRun:
    """The nights that an open run looks at, both included."""

    stream: str
    first_night: date
    last_night: date

    def reaches(self, night: date) -> bool:
        """Return whether the run looks at a night."""
        return self.first_night <= night <= self.last_night


def open_runs(session: Session | sa.Connection) -> list[OpenRun]:
    """Return the runs that are open now."""
    return [
        OpenRun(row["stream"], row["lookback_from"], row["night"])
        for row in rows(session, "retention/sql/open_runs")
    ]


def holder(runs: Sequence[OpenRun], night: date, stream: str | None = None) -> OpenRun | None:
    """Return an open run that looks at a night; with a stream, one of that stream."""
    return next((run for run in runs if run.reaches(night) and stream in (None, run.stream)), None)
