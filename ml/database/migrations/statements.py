"""The steps of every revision: run the `.sql` file of its name, and refuse a downgrade."""

from functools import partial
from pathlib import Path

from alembic import op

from ml.database.locking import retry_when_locked
from ml.errors import DataError


def run(revision_file: str) -> None:
    """Run the statements in the `.sql` file beside a revision's Python file."""
    # psycopg2 would take a percent sign for a placeholder.
    op.get_bind().exec_driver_sql(_read(revision_file).replace("%", "%%"))


def run_online(revision_file: str, *steps: str) -> None:
    """Run a migration in several transactions, so that none holds its locks while another works.

    Args:
        revision_file: The revision's Python file.
        steps: What the names of the `.sql` files have in addition to the revision's own; each file
            is a transaction, and must do nothing when it is repeated.
    """
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        for step in steps:
            sql = _read(revision_file, step).replace("%", "%%")
            retry_when_locked(connection, partial(connection.exec_driver_sql, sql))


def _read(revision_file: str, step: str = "") -> str:
    path = Path(revision_file)
    return path.with_name(f"{path.stem}{step}.sql").read_text(encoding="utf-8")


def refuse() -> None:
    """Refuse a downgrade.

    Raises:
        DataError: Always, since a downgrade would delete results.
    """
    raise DataError("A revision is not undone: results would be lost.", "Restore a backup instead.")
