"""What a file declares before its pixels: whether reading it ends within bounded time and memory.

A valid file may ask for hours of work: a progressive JPEG for the same 64 million pixels a thousand
times, a PNG for a million chunks, a TIFF for two million fractions in one tag. Decoders do as they
are told; here such files are found first, by counting what costs time. The limits are far beyond
what cameras and programs write (docs/images.md lists them).
"""

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

# Pillow's parsers are Python, and read a few bytes at a time: a chunk costs them three reads.
MOST_READS = 200_000
MOST_EXIF_BYTES = 2**20
MOST_SEGMENTS = 10_000
MOST_SCANS = 500
MOST_SCANNED_PIXELS = 800_000_000
MOST_COMPRESSED_CHUNKS = 256
MOST_TAG_VALUES = 200_000
# Pillow adds each part of an Exif to those before, which copies them.
_BYTES_AN_EXIF_PART = 2**14

_SOS, _EOI = 0xDA, 0xD9
# Markers without a length: TEM, the restarts and SOI; and the zero that means "no marker".
_ALONE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")

_TAG_BYTES = {1: 1, 2: 1, 7: 1}  # read as they are; every other type becomes a number each
_SUB_DIRECTORIES = (0x8769, 0x8825, 0xA005)  # Exif, GPS, interoperability
_MOST_DIRECTORIES = 16


class TooComplexError(Exception):
    """The file holds more parts than a real image has; the message says of what."""


class Reader(io.BytesIO):
    """The file for a parser, which may ask for bytes 200,000 times and then no more."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._left = MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooComplexError(f"more parts than {MOST_READS} reads can take in")
        return super().read(size)


class Jpeg(NamedTuple):
    """What a JPEG's header says: `buffered` when its coefficients are all held before any pixel is
    made (two bytes each), as those of a progressive one are."""

    width: int
    height: int
    buffered: bool


def check_jpeg(content: bytes) -> Jpeg:
    """Read a JPEG's header up to its first scan, and count the scans.

    Raises:
        TooComplexError: more segments, Exif or scans than the limits allow.
    """
    width = height = components = exif = 0
    buffered = False
    for number, (marker, start, length) in enumerate(_segments(content)):
        if number >= MOST_SEGMENTS:
            raise TooComplexError(f"more than {MOST_SEGMENTS} segments before the first scan")
        if marker in _FRAMES and length >= 6:
            _, height, width, components = struct.unpack_from(">BHHB", content, start)
            buffered = marker in _PROGRESSIVE
        elif marker == 0xE1 and content.startswith(b"Exif\0\0", start):
            exif += max(length, _BYTES_AN_EXIF_PART)
            if exif > MOST_EXIF_BYTES:
                raise TooComplexError(f"more than {MOST_EXIF_BYTES} bytes of Exif")
        elif marker == _SOS:
            if length and content[start] < components:
                buffered = True
            if buffered:
                _check_scans(content, start, width * height, components)
    return Jpeg(width, height, buffered)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, place and length of the segments up to the first scan's header, as libjpeg finds
    them."""
    place = 2
    while (place := content.find(b"\xff", place)) >= 0:
        while content[place : place + 1] == b"\xff":
            place += 1
        if place + 3 > len(content):
            return
        marker = content[place]
        if marker in _ALONE:
            place += 1
            continue
        length = max(0, int.from_bytes(content[place + 1 : place + 3], "big") - 2)
        place += 3
        yield marker, place, min(length, len(content) - place)
        if marker == _SOS:
            return
        place += length


def _check_scans(content: bytes, first: int, pixels: int, components: int) -> None:
    # libjpeg writes ten for YCbCr, and otherwise as many as this.
    usual = 2 + 4 * components
    allowed = min(MOST_SCANS, max(usual, MOST_SCANNED_PIXELS // max(1, pixels)))
    scans = 1
    if content.count(b"\xff\xda", first) < allowed:
        return
    # Some of these may lie within segments, or behind the image's end.
    place = first
    while found := _MARKER.search(content, place):
        marker, place = content[found.end() - 1], found.end()
        if marker == _EOI:
            return
        if marker == _SOS:
            scans += 1
            if scans > allowed:
                raise TooComplexError(f"more than {allowed} scans of {pixels} pixels")
        if marker not in _ALONE:
            place += max(2, int.from_bytes(content[place : place + 2], "big"))


def check_png(content: bytes) -> None:
    """Count the chunks whose content is compressed: each may stand for a megabyte.

    Raises:
        TooComplexError: there are more than the limit.
    """
    chunks = sum(content.count(kind) for kind in (b"iCCP", b"zTXt", b"iTXt"))
    if chunks > MOST_COMPRESSED_CHUNKS:
        raise TooComplexError(f"{chunks} compressed chunks; limit {MOST_COMPRESSED_CHUNKS}")


def check_tiff(content: bytes) -> None:
    """Count the numbers in the tags of a TIFF's first directory, and of those it refers to.

    Raises:
        TooComplexError: there are more than the limit.
    """
    order = "<" if content.startswith(b"II") else ">"
    large = content[2:4] in (b"\x2b\0", b"\0\x2b")  # BigTIFF
    head, entry = (f"{order}Q", f"{order}HHQQ") if large else (f"{order}H", f"{order}HHII")
    offset = f"{order}Q" if large else f"{order}I"
    try:
        waiting = [struct.unpack_from(offset, content, 8 if large else 4)[0]]
    except struct.error:
        return  # cut short, as Pillow will say
    seen: set[int] = set()
    values = 0
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        if len(seen) > _MOST_DIRECTORIES:
            raise TooComplexError(f"more than {_MOST_DIRECTORIES} directories in directories")
        for tag, kind, count, value in _entries(content, place, head, entry):
            if tag in _SUB_DIRECTORIES:
                waiting.append(value)
            values += 1 if kind in _TAG_BYTES else count
            if values > MOST_TAG_VALUES:
                raise TooComplexError(f"more than {MOST_TAG_VALUES} numbers in its tags")


def _entries(
    content: bytes, place: int, head: str, entry: str
) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, number of values, and value or offset, of a TIFF's directory as far as it goes."""
    try:
        (count,) = struct.unpack_from(head, content, place)
        place += struct.calcsize(head)
        for number in range(count):
            yield struct.unpack_from(entry, content, place + number * struct.calcsize(entry))
    except (struct.error, OverflowError):
        return
