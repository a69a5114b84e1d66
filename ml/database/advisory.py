"""Advisory locks between what is used and what deletes it.

Many may use a thing at once; it is deleted only while nobody does. Postgres releases the locks of a
process that ends, however it ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ml.database.connection import engine

# Kinds: the snapshots of a data set, a run in MLflow.
SNAPSHOTS, TRAINING_RUN = "snapshots", "training run"

_HOLD = sa.text("SELECT pg_advisory_lock_shared(hashtext(:kind), hashtext(:name))")
_TRY = sa.text("SELECT pg_try_advisory_xact_lock(hashtext(:kind), hashtext(:name))")


@contextmanager
def in_use(kind: str, name: str) -> Iterator[None]:
    """Keep a thing from being deleted while the context is open; waits while it is being deleted.

    Args:
        kind: what it is, such as `SNAPSHOTS`.
        name: which one.
    """
    with engine().connect() as connection:
        # The connection must not go back to the pool with the lock.
        connection.detach()
        connection.execute(_HOLD, {"kind": kind, "name": name})
        connection.commit()
        yield


def try_exclusive(session: Session, kind: str, name: str) -> bool:
    """Keep a thing from being used until the transaction ends; returns False if it is in use."""
    return bool(session.scalar(_TRY, {"kind": kind, "name": name}))
