"""Load rows into a table with COPY, as CSV that the standard library writes."""

import csv
import io
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.orm import Session

from ml.database.connection import connection_error

_ROWS_PER_BLOCK = 1000


class _Null(int):
    r"""NULL in a row for `csv.writer`, which quotes all but numbers.

    To Postgres, \N without quotes is NULL, and with quotes a string.
    """

    def __str__(self) -> str:
        return r"\N"


_NULL = _Null()


def copy(
    session: Session | sa.Connection,
    table: str,
    columns: Iterable[str],
    rows: Iterable[tuple[Any, ...]],
) -> None:
    """Copy rows into a table within the current transaction, as a stream.

    Args:
        session: The session or connection whose transaction this joins.
        table: Name of the table, unquoted.
        columns: Names of the columns, unquoted, in the order of each row's values.
        rows: Rows of numbers, strings, dates, times, booleans and None (NULL); read while they are
            copied. Postgres stores no NUL characters; they become U+FFFD. An error that the
            iterable raises is raised as it is.

    Raises:
        ServiceError: The connection was lost.
    """
    connection = session.connection() if isinstance(session, Session) else session
    # The cursor is psycopg2's: SQLAlchemy would not know of the transaction that it begins, and
    # would neither commit it nor roll it back.
    if not connection.in_transaction():
        connection.begin()
    statement = sql.SQL(r"COPY {} ({}) FROM STDIN WITH (FORMAT csv, NULL '\N')").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    blocks = _CsvBlocks(rows)
    try:
        with closing(connection.connection.cursor()) as cursor:
            cursor.copy_expert(statement, blocks)
    except psycopg2.OperationalError as error:
        if blocks.error is not None:
            raise blocks.error from error
        # SQLAlchemy does not know of this statement, and would roll back on a dead connection.
        connection.invalidate(error)
        raise connection_error(connection.engine, error) from error


class _CsvBlocks:
    """Rows as a file of CSV; psycopg2 takes blocks of any length, whatever length it asks for."""

    def __init__(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self.rows = iter(rows)
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """Return the next rows as CSV; no bytes at the end."""
        try:
            block = io.StringIO()
            writer = csv.writer(block, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            writer.writerows(map(_replace_none, islice(self.rows, _ROWS_PER_BLOCK)))
            return block.getvalue().replace("\x00", "\ufffd").encode()
        except BaseException as error:  # psycopg2 reports only that the query was cancelled
            self.error = error
            raise


def _replace_none(row: tuple[Any, ...]) -> Iterable[Any]:
    return [_NULL if value is None else value for value in row]
