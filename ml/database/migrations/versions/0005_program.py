"""What is recorded of a program, beside its hash.

Revision ID: 0005
Revises: 0004
"""

from ml.database.migrations import statements

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
