"""A second score, novelty, that marks images for review; how a threshold was chosen.

Revision ID: 0003
Revises: 0002
"""

from ml.database.migrations import statements

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
