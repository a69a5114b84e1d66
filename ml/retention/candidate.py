"""A thing that may be deleted."""

from dataclasses import dataclass
from datetime import date


@dataclass(frozen=True)
class Candidate:
    """What one deletion removes, and why it may.

    Attributes:
        kind: The limit that has passed, one of `ml.config.retention.KINDS`.
        name: What is deleted, such as a partition, a folder in S3, or a version.
        stream: The stream that it belongs to; None if it belongs to several or to none.
        night: The night that it belongs to, if it belongs to one.
        items: How many rows, objects or versions go; an estimate where counting is slow.
        bytes: How much they hold, in bytes; an estimate where measuring is slow.
        reason: Why it may go, as a sentence without a full stop.
    """

    kind: str
    name: str
    stream: str | None
    night: date | None
    items: int
    bytes: int
    reason: str
