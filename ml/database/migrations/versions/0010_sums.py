"""What the results of a run come to, by night, version and camera.

Revision ID: 0010
Revises: 0009
"""

from ml.database.migrations import statements

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
