"""Where a night's images lie, and which night a key belongs to."""

import re
from collections.abc import Iterator
from datetime import date, timedelta

_DATED = re.compile(r"/dt=(\d{4}-\d{2}-\d{2})/")


def folder(prefix: str, night: date) -> str:
    """The folder of a night's images: `PREFIX/dt=YYYY-MM-DD`."""
    return f"{prefix}/dt={night.isoformat()}"


def of(uri: str) -> date:
    """The night that an image's URI names; raises ValueError when it names none."""
    found = _DATED.search(uri)
    if found is None:
        raise ValueError(f"{uri} has no folder dt=YYYY-MM-DD")
    return date.fromisoformat(found.group(1))


def back_from(night: date, nights: int) -> Iterator[date]:
    """`night` and the `nights` before it, newest first."""
    return (night - timedelta(days=days) for days in range(nights + 1))
