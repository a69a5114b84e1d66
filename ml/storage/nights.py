"""The folders of nights."""

from collections.abc import Iterator
from datetime import date, timedelta


def folder(prefix: str, night: date) -> str:
    """Return the folder of a night's images: `PREFIX/dt=YYYY-MM-DD`."""
    return f"{prefix}/dt={night.isoformat()}"


def night_range(first: date, last: date) -> list[date]:
    """Return the nights from `first` to `last`, in ascending order.

    Statements name them for each table that is divided by night (`night = ANY (:nights)`), so that
    Postgres plans to read the partitions of these nights only. A join on the night does not do
    that, and a range makes it expect too few rows of a night that it has no statistics of yet
    (docs/decisions/0028-partitions.md).
    """
    return [first + timedelta(days=days) for days in range((last - first).days + 1)]


def lookback(night: date, nights: int) -> Iterator[date]:
    """Yield `night` and the `nights` before it, newest first."""
    return (night - timedelta(days=days) for days in range(nights + 1))


def folder_length(prefix: str) -> int:
    """Return the length of a night's folder with the slash after it: `PREFIX/dt=YYYY-MM-DD/`."""
    return len(folder(prefix, date.min)) + 1
