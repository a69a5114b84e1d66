"""Where a night's images lie."""

from collections.abc import Iterator
from datetime import date, timedelta


def folder(prefix: str, night: date) -> str:
    """The folder of a night's images: `PREFIX/dt=YYYY-MM-DD`."""
    return f"{prefix}/dt={night.isoformat()}"


def back_from(night: date, nights: int) -> Iterator[date]:
    """`night` and the `nights` before it, newest first."""
    return (night - timedelta(days=days) for days in range(nights + 1))
