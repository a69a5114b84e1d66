"""The record of what was deleted: table `nightscore.maintenance`."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from ml.database.tables import Maintenance
from ml.retention.candidate import Candidate
from ml.retention.session import transaction


@contextmanager
def recorded(candidate: Candidate, by: str) -> Iterator[None]:
    """Write down a deletion before it begins, and afterwards what became of it.

    Args:
        candidate: What is deleted.
        by: Who deletes it.
    """
    values = {
        name: getattr(candidate, name)
        for name in ("kind", "name", "stream", "night", "items", "bytes", "reason")
    }
    with transaction() as session:
        insert = sa.insert(Maintenance).values(**values, deleted_by=by)
        number = session.scalar(insert.returning(Maintenance.maintenance_id))
    try:
        yield
    except Exception as failure:  # not an interruption, after which the row has no end
        _finish(number, " ".join(str(failure).split()) or type(failure).__name__)
        raise
    _finish(number, None)


def _finish(number: int | None, error: str | None) -> None:
    with transaction() as session:
        session.execute(
            sa.update(Maintenance)
            .where(Maintenance.maintenance_id == number)
            .values(finished_at=sa.func.clock_timestamp(), error=error)
        )
