"""What a shard's attempts came to; promotions that were interrupted.

Revision ID: 0004
Revises: 0003
"""

from ml.database.migrations import statements

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
