"""What was deleted because its limit had passed.

Revision ID: 0012
Revises: 0011
"""

from ml.database.migrations import statements

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
