"""The cameras of a stream, and the nights of a shard.

Revision ID: 0008
Revises: 0007
"""

from ml.database.migrations import statements

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
