"""Versions that retention has deleted in MLflow.

Revision ID: 0013
Revises: 0012
"""

from ml.database.migrations import statements

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    statements.run(__file__)


def downgrade() -> None:
    statements.refuse()
