"""The cameras of a stream: found in the keys of its images, and stored once by name.

While images are listed, a camera is a number of this process. Only when all are listed and their
cameras are known to be few enough are new cameras stored, so a pattern that takes each file for a
camera leaves nothing behind.
"""

import logging
from collections.abc import Sequence

import sqlalchemy as sa

from ml.config.key_pattern import CameraName, KeyPattern, camera_name, key_pattern
from ml.config.schema import Stream
from ml.database.connection import rows, statement, transaction
from ml.errors import DataError
from ml.storage import nights

log = logging.getLogger(__name__)

# A production hall has tens. More are a pattern that takes for a camera what is none, and each
# camera is a row of the sums of every night.
MAX_CAMERAS = 1000
_SHOWN = 5
# Many keys have texts that are no names, if the pattern is wrong: they are not remembered then.
_MAX_REMEMBERED = 10_000
_LOCK = sa.text("SELECT pg_advisory_xact_lock(hashtext('cameras'), hashtext(:stream))")


class Cameras:
    """The cameras of a stream that are known, and those that keys name for the first time.

    Args:
        stream_name: the name of the stream.
        stream: its configuration. Without `key_pattern` no image has a camera.

    Raises:
        ServiceError: Postgres failed.
    """

    def __init__(self, stream_name: str, stream: Stream) -> None:
        self._stream = stream_name
        self._folder_length = nights.folder_length(stream.prefix)
        self._pattern: KeyPattern | None = None
        # What the groups of the pattern matched → number; None if it is no name.
        self._numbers: dict[tuple[bytes, bytes, bytes], int | None] = {}
        # The camera with the number n is names[n - 1].
        self.names: list[CameraName] = []
        self._images = 0
        # Images whose keys name no camera, and the first of them.
        self._unnamed, self._example = 0, ""
        self._ids: dict[CameraName, int] = {}
        if stream.key_pattern:
            self._pattern = key_pattern(stream.key_pattern)
            with transaction() as session:
                self._ids = _known(session, stream_name)
            self.names = list(self._ids)
            self._numbers = {
                (name.camera.encode(), name.line.encode(), name.product.encode()): number
                for number, name in enumerate(self.names, start=1)
            }

    def assign(self, uris: Sequence[str]) -> list[int | None]:
        """Return the number of each image's camera, from 1; None where the key names none.

        The numbers are places in `names` and `ids()`, and mean nothing elsewhere.

        Raises:
            DataError: the stream would have more than `MAX_CAMERAS` cameras.
        """
        if self._pattern is None:
            return [None] * len(uris)
        search, start = self._pattern.search, self._folder_length
        numbers = [self._number(search(uri[start:])) for uri in uris]
        self._images += len(numbers)
        if None in numbers:
            self._unnamed += numbers.count(None)
            self._example = self._example or uris[numbers.index(None)]
        return numbers

    def warn_of_unnamed(self) -> None:
        """Log how many of the images have no camera although there is a pattern, if any."""
        if self._unnamed:
            log.warning(
                "The keys of %s of %s images of the stream %s name no camera, such as %s",
                self._unnamed,
                self._images,
                self._stream,
                self._example,
            )

    def _number(self, match: tuple[bytes, bytes, bytes] | None) -> int | None:
        if match is None or match in self._numbers:
            return None if match is None else self._numbers[match]
        name = camera_name(match)
        if name is None:
            if len(self._numbers) < _MAX_REMEMBERED:
                self._numbers[match] = None
            return None
        self.names.append(name)
        if len(self.names) > MAX_CAMERAS:
            raise self._too_many()
        self._numbers[match] = len(self.names)
        return len(self.names)

    def ids(self) -> list[int]:
        """Return the camera_id of each camera in `names`; stores those that are new.

        They are stored in a short transaction, so that nobody waits for what follows.

        Raises:
            DataError: the stream has more than `MAX_CAMERAS` cameras; none is stored.
            ServiceError: Postgres failed.
        """
        if missing := [name for name in self.names if name not in self._ids]:
            columns = zip(*missing, strict=True)
            parameters = dict(
                zip(("cameras", "lines", "products"), map(list, columns), strict=True)
            )
            with transaction() as session:
                # Two that find cameras at once would each stay below the limit.
                session.execute(_LOCK, {"stream": self._stream})
                session.execute(
                    statement("scoring/sql/add_cameras"), {"stream": self._stream, **parameters}
                )
                self._ids = _known(session, self._stream)
                if len(self._ids) > MAX_CAMERAS:
                    raise self._too_many(missing)
            log.info("%s new cameras in the stream %s", len(missing), self._stream)
        return [self._ids[name] for name in self.names]

    def known_id(self, number: int | None) -> int | None:
        """Return the camera_id of a number; None if there is none yet."""
        return None if number is None else self._ids.get(self.names[number - 1])

    def _too_many(self, new: Sequence[CameraName] = ()) -> DataError:
        new = new or [name for name in self.names if name not in self._ids]
        pattern = self._pattern.pattern if self._pattern else ""
        return DataError(
            f"The key_pattern {pattern!r} of the stream {self._stream!r} finds more than "
            f"{MAX_CAMERAS:,} cameras; the first new ones: "
            f"{'; '.join(map(str, new[:_SHOWN]))}. Nothing was stored.",
            "Change the pattern: its groups have to name what is the same every night. "
            f"Try it: nightscore cameras {self._stream} --check.",
        )


def _known(session: sa.orm.Session, stream: str) -> dict[CameraName, int]:
    known = rows(session, "scoring/sql/known_cameras", stream=stream)
    return {
        CameraName(row["camera"], row["line"], row["product"]): row["camera_id"] for row in known
    }
