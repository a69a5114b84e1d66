"""The cameras of images that are stored already: after a stream got a pattern, or another one."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from ml.config.key_pattern import CameraName
from ml.config.loading import configuration
from ml.config.schema import Stream
from ml.database.connection import rows, statement, transaction
from ml.database.sums import MERGE_LOCK, sum_night
from ml.errors import ConfigurationError
from ml.images.formats import SUFFIXES
from ml.scoring.cameras import Cameras
from ml.storage import nights
from ml.storage.object_store import object_store

# Images per transaction. A transaction holds up whoever writes the same images, which is nobody but
# another backfill.
BATCH = 10_000
_EXAMPLES = 5
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtext('camera backfill'), hashtext(:stream))")
_NO_CAMERA = -1


@dataclass(frozen=True)
class BackfilledNight:
    """What a backfill did in a night.

    Attributes:
        night: the night.
        images: how many images of the stream it has.
        changed: how many of them have another camera than before.
        is_summed: whether the sums were computed again. Those of a night of which rows have been
            deleted, since their time is over, stay as they are.
    """

    night: date
    images: int
    changed: int
    is_summed: bool


@dataclass(frozen=True)
class CameraCheck:
    """What a pattern finds in a night's objects.

    Attributes:
        cameras: the cameras with their numbers of images, the largest number first.
        without_camera: the number of images without a camera.
        examples: URIs of the first of these.
    """

    cameras: list[tuple[CameraName, int]]
    without_camera: int
    examples: list[str]


def check(stream_name: str, night: date, on_images: Callable[[int], None]) -> CameraCheck:
    """Search the keys of a night's objects in S3 with the stream's pattern; nothing is written.

    Args:
        stream_name: a stream of nightscore.yaml.
        night: the night whose objects are listed.
        on_images: is called with the number of images read so far.

    Raises:
        ConfigurationError: there is no such stream, or it has no pattern.
        DataError: the pattern finds too many cameras.
        ServiceError: Postgres or S3 failed.
    """
    stream = _stream_with_pattern(stream_name)
    cameras, counts, examples = Cameras(stream_name, stream), Counter[int | None](), list[str]()
    for page in object_store().list_pages(nights.folder(stream.prefix, night)):
        uris = [image.uri for image in page if image.uri.lower().endswith(SUFFIXES)]
        numbers = cameras.assign(uris)
        counts.update(numbers)
        missing = (uri for uri, number in zip(uris, numbers, strict=True) if number is None)
        examples += [uri for uri, _ in zip(missing, range(_EXAMPLES - len(examples)), strict=False)]
        on_images(counts.total())
    without_camera = counts.pop(None, 0)
    named = [(cameras.names[number - 1], n) for number, n in counts.most_common() if number]
    return CameraCheck(named, without_camera, examples)


def backfill(
    stream_name: str, first: date, last: date, on_images: Callable[[date, int], None]
) -> Iterator[BackfilledNight]:
    """Give the stored images of a stream the cameras that its pattern finds, night by night.

    A night is read first, so that new cameras are stored only if they are not too many. Then images
    are updated in short transactions, and at the end the sums of the night are computed again. That
    is done even if no image changed, as an interruption may have come just before it.

    Args:
        stream_name: a stream of nightscore.yaml.
        first: the first night.
        last: the last night.
        on_images: is called with a night and the number of its images done so far.

    Yields:
        The nights that have images, in ascending order, each when it is done.

    Raises:
        ConfigurationError: there is no such stream, or it has no pattern.
        DataError: the pattern finds too many cameras; the night is left as it was.
        ServiceError: Postgres failed.
    """
    cameras = Cameras(stream_name, _stream_with_pattern(stream_name))
    with transaction() as session:
        parameters = {"stream": stream_name, "first_night": first, "last_night": last}
        stream_nights = session.scalars(statement("scoring/sql/stream_nights"), parameters).all()
    for night in stream_nights:
        changes = _find_changes(cameras, stream_name, night, on_images)
        if changes.images:
            changed = _update(cameras, stream_name, changes)
            _wait_for_merges(stream_name)
            is_summed = sum_night(stream_name, night)
            yield BackfilledNight(night, changes.images, changed, is_summed)


def _stream_with_pattern(name: str) -> Stream:
    stream = configuration().stream(name)
    if stream.key_pattern is None:
        raise ConfigurationError(
            f"The stream {name!r} has no key_pattern.",
            f"Set streams.{name}.key_pattern in nightscore.yaml (docs/configuration.md, Cameras).",
        )
    return stream


@dataclass
class _Changes:
    """Images of a night whose camera is another, with the numbers of `Cameras`; 0 for none.

    Arrays, as ten million images may change: 10 bytes each.
    """

    night: date
    images: int
    image_ids: "array[int]"
    numbers: "array[int]"


def _find_changes(
    cameras: Cameras, stream: str, night: date, on_images: Callable[[date, int], None]
) -> _Changes:
    changes = _Changes(night, 0, array("q"), array("h"))
    for page in _pages(stream, night):
        numbers = cameras.assign([image["uri"] for image in page])
        for image, number in zip(page, numbers, strict=True):
            if number is None:
                is_right = image["camera_id"] is None
            else:
                is_right = image["camera_id"] == (cameras.known_id(number) or _NO_CAMERA)
            if not is_right:
                changes.image_ids.append(image["image_id"])
                changes.numbers.append(number or 0)
        changes.images += len(page)
        on_images(night, changes.images)
    return changes


def _pages(stream: str, night: date) -> Iterator[list[Any]]:
    """Yield the images of a night in the order of their URIs, each page in its own transaction."""
    uri = etag = ""
    while True:
        with transaction() as session:
            page = rows(
                session,
                "scoring/sql/camera_images",
                night=night,
                stream=stream,
                uri=uri,
                etag=etag,
                most=BATCH,
            )
        if page:
            yield page
        if len(page) < BATCH:
            return
        uri, etag = page[-1]["uri"], page[-1]["etag"]


def _update(cameras: Cameras, stream: str, changes: _Changes) -> int:
    """Store the changes in batches; returns the number of images that were changed."""
    if not changes.image_ids:
        return 0
    changed, ids = 0, [_NO_CAMERA, *cameras.ids()]
    for start in range(0, len(changes.image_ids), BATCH):
        batch = slice(start, start + BATCH)
        with transaction() as session:
            # Two that update the same images in different orders would wait for each other.
            session.execute(_LOCK, {"stream": stream})
            result = session.execute(
                statement("scoring/sql/update_cameras"),
                {
                    "night": changes.night,
                    "image_ids": list(changes.image_ids[batch]),
                    "camera_ids": [ids[number] for number in changes.numbers[batch]],
                },
            )
            changed += result.rowcount  # type: ignore[attr-defined]
    return changed


def _wait_for_merges(stream: str) -> None:
    """Wait until the merges that have counted images by their old cameras have ended.

    They are not in the snapshot from which the sums are computed, so what they added under an old
    camera would stay. Later merges count images by the new ones.
    """
    with transaction() as session:
        session.execute(MERGE_LOCK, {"stream": stream})
