"""Rows that COPY brings into a table are those that were given, to the letter and to the bit."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import uuid4

import numpy as np
import pytest
import sqlalchemy as sa

from ml.database.connection import engine
from ml.database.copying import copy

# What COPY's formats, CSV and Postgres give a meaning of their own.
TEXTS = [
    "", None, r"\N", r"\\N", '"\\N"', r"\.", "\\", r"\n", "a\nb", "a\n\\.\nb", "a\r\nb", "\r", "\n",
    "\t", ",", '"', '""', "'", " before", "behind ", "ünïcode 中文 \U0001f600", "\x00", "a\x00b",
    "\x01\x08\x0b\x0c\x1b\x7f\x85\u2028", "NULL", "null", "nan", "x" * 200_000,
]  # fmt: skip
# Postgres stores no NUL characters.
STORED = [text and text.replace("\x00", "\ufffd") for text in TEXTS]


@pytest.fixture
def connection(store_and_database) -> Iterator[sa.Connection]:
    with engine().connect() as connection:
        yield connection
        connection.rollback()


def test_a_text_alone_in_its_row_is_kept(connection):
    connection.exec_driver_sql("CREATE TEMPORARY TABLE texts (text text)")
    copy(connection, "texts", ["text"], [(text,) for text in TEXTS])
    assert list(connection.exec_driver_sql("SELECT text FROM texts").scalars()) == STORED


def test_texts_beside_each_other_are_kept(connection):
    connection.exec_driver_sql("CREATE TEMPORARY TABLE texts (number int, one text, other text)")
    rows = zip(range(len(TEXTS)), TEXTS, reversed(TEXTS), strict=True)
    copy(connection, "texts", ["number", "one", "other"], rows)
    stored = connection.exec_driver_sql("SELECT one, other FROM texts ORDER BY number").all()
    assert [tuple(row) for row in stored] == list(zip(STORED, reversed(STORED), strict=True))


def test_values_of_each_type_are_kept(connection):
    connection.exec_driver_sql(
        "CREATE TEMPORARY TABLE kinds (number bigint, single real, double double precision,"
        " truth boolean, day date, moment timestamptz, exact numeric, id uuid)"
    )
    moment = datetime(2026, 11, 26, 1, 2, 3, 456789, tzinfo=timezone(timedelta(hours=2)))
    rows = [
        (1, math.inf, 5e-324, True, date(2026, 1, 2), moment, Decimal("1.2345678901234567890"), uuid4()),
        (-(2**63), -math.inf, 1.7976931348623157e308, False, date(1, 1, 1), None, None, None),
        (np.int64(3), np.float32(0.1), np.float64(0.1), None, date(9999, 12, 31), datetime(2026, 1, 1, tzinfo=UTC), None, None),
        (None,) * 8,
    ]  # fmt: skip
    columns = ["number", "single", "double", "truth", "day", "moment", "exact", "id"]
    copy(connection, "kinds", columns, [*rows, (5, math.nan, math.nan, *[None] * 5)])
    *stored, last = connection.exec_driver_sql("SELECT * FROM kinds").all()
    expected = [(a, b and float(str(np.float32(b))), *rest) for a, b, *rest in rows]
    assert [tuple(row) for row in stored] == expected
    assert math.isnan(last[1]) and math.isnan(last[2])


def test_many_rows_come_in_their_order(connection):
    connection.exec_driver_sql("CREATE TEMPORARY TABLE numbers (number int, at serial)")
    copy(connection, "numbers", ["number"], ((number,) for number in range(12_345)))
    stored = connection.exec_driver_sql("SELECT number FROM numbers ORDER BY at").scalars()
    assert list(stored) == list(range(12_345))


def test_no_rows_are_no_error(connection):
    connection.exec_driver_sql("CREATE TEMPORARY TABLE numbers (number int)")
    copy(connection, "numbers", ["number"], [])
    assert connection.exec_driver_sql("SELECT count(*) FROM numbers").scalar() == 0


def test_a_row_that_does_not_fit_stores_nothing(connection):
    connection.exec_driver_sql("CREATE TEMPORARY TABLE pairs (one int, other text)")
    connection.commit()
    with pytest.raises(Exception, match="missing data"):
        copy(connection, "pairs", ["one", "other"], [(1, "a"), (2,)])
    connection.rollback()
    assert connection.exec_driver_sql("SELECT count(*) FROM pairs").scalar() == 0
