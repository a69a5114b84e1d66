"""The sums of the nights that there are, one night after the other, while others are scored.

Revision ID: 0011
Revises: 0010
"""

from functools import partial

from alembic import op

from ml.database.connection import rows, statement
from ml.database.migrations import statements
from ml.database.sums import with_one_snapshot

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_FILES = "database/migrations/versions/0011_backfill"
_ONE_SNAPSHOT = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ"
_AS_BEFORE = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        # Of the transactions that follow, each of one statement.
        connection.exec_driver_sql(_ONE_SNAPSHOT)
        for night in rows(connection, f"{_FILES}_nights"):
            add = partial(connection.execute, statement(f"{_FILES}_night"), dict(night))
            with_one_snapshot(connection, night["stream"], add)
        connection.exec_driver_sql(_AS_BEFORE)
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
