"""The steps of every revision: run the `.sql` file of its name, and refuse a downgrade."""

from pathlib import Path

from alembic import op

from ml.errors import DataError


def run(revision_file: str) -> None:
    """Run the statements in the `.sql` file beside a revision's Python file."""
    sql = Path(revision_file).with_suffix(".sql").read_text(encoding="utf-8")
    # psycopg2 would take a percent sign for a placeholder.
    op.get_bind().exec_driver_sql(sql.replace("%", "%%"))


def refuse() -> None:
    """Refuse a downgrade.

    Raises:
        DataError: Always, since a downgrade would delete results.
    """
    raise DataError("A revision is not undone: results would be lost.", "Restore a backup instead.")
