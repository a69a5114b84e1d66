"""A manifest divided by night, without moving the rows that there are.

Revision ID: 0009
Revises: 0008
"""

from ml.database.migrations import statements

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Each file is a transaction of its own, and does nothing if it was done before.
    statements.run_online(__file__, "_bound", "_validate", "")


def downgrade() -> None:
    statements.refuse()
