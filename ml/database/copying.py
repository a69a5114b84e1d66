"""Fill a table with COPY."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import date, datetime
from typing import Any

import psycopg2
import sqlalchemy as sa
from psycopg2 import sql
from sqlalchemy.orm import Session

from ml.database.connection import connection_lost


def copy(
    session: Session | sa.Connection,
    table: str,
    columns: Iterable[str],
    values: Iterable[tuple[Any, ...]],
) -> None:
    """COPY rows into a table within the current transaction, streaming.

    Raises:
        ServiceError: the connection was lost. What `values` raises passes through.
    """
    connection = session.connection() if isinstance(session, Session) else session
    lines = _Lines(map(_copy_line, values))
    into = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    try:
        with closing(connection.connection.cursor()) as cursor:
            cursor.copy_expert(into, lines)
    except psycopg2.OperationalError as error:
        if lines.error is not None:
            raise lines.error from error
        # SQLAlchemy did not see this statement, and would roll back on a dead connection.
        connection.invalidate(error)
        raise connection_lost(connection.engine, error) from error


class _Lines:
    """A file to read from, made of lines; psycopg2 asks for blocks of bytes."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.rest = b""
        self.error: BaseException | None = None

    def read(self, size: int = 65536) -> bytes:
        try:
            return self._read(size)
        except BaseException as error:  # psycopg2 would make a cancelled query of it
            self.error = error
            raise

    def _read(self, size: int) -> bytes:
        parts, length = [self.rest], len(self.rest)
        while length < size:
            line = next(self.lines, None)
            if line is None:
                break
            parts.append(line.encode())
            length += len(parts[-1])
        block = b"".join(parts)
        self.rest = block[size:]
        return block[:size]


# https://www.postgresql.org/docs/18/sql-copy.html, "Text Format"
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\x00": "\ufffd"})


def _copy_line(row: tuple[Any, ...]) -> str:
    return "\t".join(map(_copy_field, row)) + "\n"


def _copy_field(value: Any) -> str:
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, date | datetime):
        return value.isoformat()
    return str(value)
