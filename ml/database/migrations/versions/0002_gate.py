"""The gate's decision of a version.

Revision ID: 0002
Revises: 0001
"""

from ml.database.migrations import statements

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
