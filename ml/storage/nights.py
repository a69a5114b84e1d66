"""The folders of nights."""

from collections.abc import Iterator
from datetime import date, timedelta


def folder(prefix: str, night: date) -> str:
    """Return the folder of a night's images: `PREFIX/dt=YYYY-MM-DD`."""
    return f"{prefix}/dt={night.isoformat()}"


def lookback(night: date, nights: int) -> Iterator[date]:
    """Yield `night` and the `nights` before it, newest first."""
    return (night - timedelta(days=days) for days in range(nights + 1))
