"""The device that scored a shard.

Revision ID: 0007
Revises: 0006
"""

from ml.database.migrations import statements

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
