"""Checks of an image file's structure, before a decoder opens it.

A valid file can keep a decoder busy for hours: a progressive JPEG of 64 million pixels with a
thousand scans, a PNG of a million chunks, a TIFF with two million fractions in one tag. So what
takes time is counted first. The limits are far beyond what cameras and programs write;
docs/images.md lists them.
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Pillow's parsers are Python and read a few bytes at a time; a chunk takes three reads.
MAX_READS = 200_000
MAX_EXIF_BYTES = 2**20
MAX_SEGMENTS = 10_000
MAX_SCANS = 500
MAX_SCANNED_PIXELS = 800_000_000
MAX_COMPRESSED_CHUNKS = 256
MAX_TAG_VALUES = 200_000
# Pillow appends each part of an Exif to those before it, which copies them. So a part counts as at
# least this number of bytes.
_MIN_EXIF_PART_BYTES = 2**14

# Markers of JPEG (ITU-T T.81, table B.1).
_SOS, _EOI = 0xDA, 0xD9
# Markers without a length: TEM, the restarts and SOI; and zero, which means "no marker".
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")

# Types of TIFF whose values Pillow reads as one; of every other type it makes a number per value.
_BYTE_TYPES = (1, 2, 7)
_SUB_DIRECTORY_TAGS = (0x8769, 0x8825, 0xA005)  # Exif, GPS, interoperability
_MAX_DIRECTORIES = 16


class TooComplexError(Exception):
    """A file has more parts than a real image has; the message says which."""


class LimitedReader(io.BytesIO):
    """A file that raises TooComplexError after `MAX_READS` reads."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._remaining = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the file, as `io.BytesIO` does."""
        self._remaining -= 1
        if self._remaining < 0:
            raise TooComplexError(f"more parts than {MAX_READS} reads can take in")
        return super().read(size)


class JpegHeader(NamedTuple):
    """The header of a JPEG.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        buffered: Whether a decoder holds all coefficients (two bytes each) before it makes the
            first pixel, as of a progressive JPEG.
    """

    width: int
    height: int
    buffered: bool


def check_jpeg(content: bytes) -> JpegHeader:
    """Read a JPEG's header up to its first scan, and count the scans.

    Raises:
        TooComplexError: There are more segments, Exif or scans than the limits allow.
    """
    width = height = components = exif_bytes = 0
    buffered = False
    for count, (marker, start, length) in enumerate(_segments(content)):
        if count >= MAX_SEGMENTS:
            raise TooComplexError(f"more than {MAX_SEGMENTS} segments before the first scan")
        if marker in _START_OF_FRAME and length >= 6:
            _, height, width, components = struct.unpack_from(">BHHB", content, start)
            buffered = marker in _PROGRESSIVE
        elif marker == 0xE1 and content.startswith(b"Exif\0\0", start):
            exif_bytes += max(length, _MIN_EXIF_PART_BYTES)
            if exif_bytes > MAX_EXIF_BYTES:
                raise TooComplexError(f"more than {MAX_EXIF_BYTES} bytes of Exif")
        elif marker == _SOS:
            if length and content[start] < components:
                buffered = True
            if buffered:
                _check_scans(content, start, width * height, components)
    return JpegHeader(width, height, buffered)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, offset and length of the segments up to the first scan's, as libjpeg does."""
    offset = 2
    while (offset := content.find(b"\xff", offset)) >= 0:
        while content[offset : offset + 1] == b"\xff":
            offset += 1
        if offset + 3 > len(content):
            return
        marker = content[offset]
        if marker in _WITHOUT_LENGTH:
            offset += 1
            continue
        length = max(0, int.from_bytes(content[offset + 1 : offset + 3], "big") - 2)
        offset += 3
        yield marker, offset, min(length, len(content) - offset)
        if marker == _SOS:
            return
        offset += length


def _check_scans(content: bytes, start: int, pixels: int, components: int) -> None:
    # libjpeg writes ten scans for YCbCr, and at most so many for others.
    usual = 2 + 4 * components
    limit = min(MAX_SCANS, max(usual, MAX_SCANNED_PIXELS // max(1, pixels)))
    scans = 1
    if content.count(b"\xff\xda", start) < limit:
        return
    # Some of these bytes may be within segments, or behind the end of the image.
    offset = start
    while match := _MARKER.search(content, offset):
        marker, offset = content[match.end() - 1], match.end()
        if marker == _EOI:
            return
        if marker == _SOS:
            scans += 1
            if scans > limit:
                raise TooComplexError(f"more than {limit} scans of {pixels} pixels")
        if marker not in _WITHOUT_LENGTH:
            offset += max(2, int.from_bytes(content[offset : offset + 2], "big"))


def check_png(content: bytes) -> None:
    """Count a PNG's compressed chunks, each of which may expand to a megabyte.

    Raises:
        TooComplexError: There are more than the limit.
    """
    chunks = sum(content.count(name) for name in (b"iCCP", b"zTXt", b"iTXt"))
    if chunks > MAX_COMPRESSED_CHUNKS:
        raise TooComplexError(f"{chunks} compressed chunks; limit {MAX_COMPRESSED_CHUNKS}")


def check_tiff(content: bytes) -> None:
    """Count the values in the first directory of a TIFF, and in the directories it refers to.

    Raises:
        TooComplexError: There are more than the limit.
    """
    order = "<" if content.startswith(b"II") else ">"
    is_big = content[2:4] in (b"\x2b\0", b"\0\x2b")  # BigTIFF
    count_format, entry_format = (
        (f"{order}Q", f"{order}HHQQ") if is_big else (f"{order}H", f"{order}HHII")
    )
    offset_format = f"{order}Q" if is_big else f"{order}I"
    try:
        pending = [struct.unpack_from(offset_format, content, 8 if is_big else 4)[0]]
    except struct.error:
        return  # the file is cut short, which Pillow reports
    visited: set[int] = set()
    values = 0
    while pending:
        offset = pending.pop()
        if offset in visited:
            continue
        visited.add(offset)
        if len(visited) > _MAX_DIRECTORIES:
            raise TooComplexError(f"more than {_MAX_DIRECTORIES} directories in directories")
        for tag, kind, count, value in _entries(content, offset, count_format, entry_format):
            if tag in _SUB_DIRECTORY_TAGS:
                pending.append(value)
            values += 1 if kind in _BYTE_TYPES else count
            if values > MAX_TAG_VALUES:
                raise TooComplexError(f"more than {MAX_TAG_VALUES} numbers in its tags")


def _entries(
    content: bytes, offset: int, count_format: str, entry_format: str
) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, type, number of values, and value or offset of the entries of a TIFF directory.

    A directory that is cut short ends early.
    """
    size = struct.calcsize(entry_format)
    try:
        (count,) = struct.unpack_from(count_format, content, offset)
        offset += struct.calcsize(count_format)
        for index in range(count):
            yield struct.unpack_from(entry_format, content, offset + index * size)
    except (struct.error, OverflowError):
        return
