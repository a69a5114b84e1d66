"""The reasons for which images are rejected instead of scored."""

from enum import StrEnum


class Reason(StrEnum):
    """Why an image was rejected; the values are stored in the table `rejection`."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    UNSUPPORTED = "unsupported"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_COMPLEX = "too_complex"
    GONE = "gone"
    CHANGED = "changed"
    NOT_FINITE = "not_finite"


# These may pass: an object may come back, also under the same ETag.
TRANSIENT = (Reason.GONE, Reason.CHANGED)


class RejectedError(Exception):
    """An image cannot be scored: a reason code, and a detail for the reader."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
