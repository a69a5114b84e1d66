"""Tables of Nightscore.

Revision ID: 0001
Revises:
"""

from ml.database.migrations import statements

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
