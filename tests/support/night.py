"""Nights for the fault suite: images that no other night has; some cannot be decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import count

from ml.config.loading import configuration
from ml.parallel import parallel_map
from ml.storage.object_store import object_store
from tests.support import synthetic_images

STREAM = "faults"
_DATES: Iterator[date] = (date(2029, 1, 1) + timedelta(days=n) for n in count())
_NUMBERS = count(100_000)


@dataclass(frozen=True)
class Night:
    """A night of the stream, with the URIs of all its images and of the broken ones."""

    date: date
    uris: frozenset[str]
    broken: frozenset[str]
    stream: str = STREAM


def make(images: int = 100, broken: int = 3, stream: str = STREAM) -> Night:
    """Put a night into the object store."""
    content = {f"{n:04}.png": _picture(next(_NUMBERS)) for n in range(images - broken)}
    content |= {f"broken-{n}.png": b"not an image %d" % n for n in range(broken)}
    return of(content, {name for name in content if name.startswith("broken-")}, stream)


def of(
    content: dict[str, bytes],
    broken: set[str] = frozenset(),  # type: ignore[assignment]
    stream: str = STREAM,
) -> Night:
    """Put a night of these objects, name → content; `broken` names those that cannot be decoded."""
    night = next(_DATES)
    folder = f"{configuration().stream(stream).prefix}/dt={night}"
    uris = {name: f"{folder}/{name}" for name in content}
    for _ in parallel_map(
        lambda name: object_store().put(uris[name], content[name]),
        content,
        threads=8,
        buffer_size=16,
    ):
        pass
    return Night(night, frozenset(uris.values()), frozenset(uris[name] for name in broken), stream)


def _picture(number: int) -> bytes:
    """Every other picture is flagged by the detector, so that heat maps are stored too."""
    return synthetic_images.mould("spot" if number % 2 else "normal", number)
