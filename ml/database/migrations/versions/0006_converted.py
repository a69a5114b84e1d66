"""A program's form for the CPU, and how long the engine of a shard has worked.

Revision ID: 0006
Revises: 0005
"""

from ml.database.migrations import statements

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
