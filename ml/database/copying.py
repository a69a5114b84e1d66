"""COPY of Python rows into a table, as CSV that the standard library writes."""

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

from ml.database.connection import connection_lost

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
    values: Iterable[tuple[Any, ...]],
) -> None:
    """COPY rows into a table within the current transaction, streaming.

    Args:
        session: the session or connection whose transaction this joins.
        table: name of the table, unquoted.
        columns: names of the columns, unquoted, in the order of each row's values.
        values: rows of numbers, strings, dates, times, booleans and None (NULL). Postgres stores no
            NUL characters; they become U+FFFD.

    Raises:
        ServiceError: the connection was lost. What `values` raises passes through.
    """
    connection = session.connection() if isinstance(session, Session) else session
    # The cursor is psycopg2's: SQLAlchemy would not know of the transaction that it begins, and
    # would neither commit it nor roll it back.
    if not connection.in_transaction():
        connection.begin()
    into = sql.SQL(r"COPY {} ({}) FROM STDIN WITH (FORMAT csv, NULL '\N')").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    blocks = _CsvBlocks(values)
    try:
        with closing(connection.connection.cursor()) as cursor:
            cursor.copy_expert(into, blocks)
    except psycopg2.OperationalError as error:
        if blocks.error is not None:
            raise blocks.error from error
        # SQLAlchemy did not see this statement, and would roll back on a dead connection.
        connection.invalidate(error)
        raise connection_lost(connection.engine, error) from error


class _CsvBlocks:
    """Rows as a file of CSV. psycopg2 takes blocks of any length, whatever length it asks for."""

    def __init__(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self.rows = iter(rows)
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            block = io.StringIO()
            writer = csv.writer(block, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            writer.writerows(map(_with_nulls, islice(self.rows, _ROWS_PER_BLOCK)))
            return block.getvalue().replace("\x00", "\ufffd").encode()
        except BaseException as error:  # psycopg2 would make a cancelled query of it
            self.error = error
            raise


def _with_nulls(row: tuple[Any, ...]) -> Iterable[Any]:
    return [_NULL if value is None else value for value in row]
