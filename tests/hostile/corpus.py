"""Hostile images: real files of every format, and what can be done to them, each under its name.

A base file is an ordinary image of some format and kind; a mutation takes a file and a random
generator and returns what is left of it; a crafted file is made from nothing. `corpus` draws from
all of them: the same seed gives the same files.
"""

import contextlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

Mutation = Callable[[random.Random, bytes], bytes]
SUFFIXES = ("jpg", "png", "bmp", "webp", "tif", "gif", "jpeg", "tiff")


class Input(NamedTuple):
    """A hostile file: what it is called, what was done to what, and its bytes."""

    name: str
    base: str
    mutation: str
    content: bytes


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)  # Pillow keeps a JPEG's options for the next save
    return buffer.getvalue()


def picture(width: int = 48, height: int = 36, seed: int = 0) -> Image.Image:
    """Soft shapes and some noise, as of a photo."""
    generator = np.random.default_rng([width, height, seed])
    coarse = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noise = generator.integers(-8, 9, soft.shape)
    return Image.fromarray((soft + noise).clip(0, 255).astype(np.uint8))


def deep(width: int = 48, height: int = 36) -> np.ndarray:
    """uint16 (height, width): a ramp over all 16 bits."""
    return np.linspace(0, 65535, width * height).astype(np.uint16).reshape(height, width)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *others: bytes) -> bytes:
    """A PNG of raw rows, each behind its filter byte; for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *others,
        chunk(b"IDAT", zlib.compress(rows, 1)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(entries: list[tuple[int, int, int, int | bytes]], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value or bytes), then `data`, to
    which an offset of None would be hard to give: `TIFF_DATA` is where it starts."""
    start = 8 + 2 + 12 * len(entries) + 4
    table, beyond = b"", b""
    for tag, kind, count, value in entries:
        if value is TIFF_DATA:
            value = start + sum(len(v) for *_, v in entries if isinstance(v, bytes) and len(v) > 4)
        if isinstance(value, bytes) and len(value) > 4:
            table += struct.pack("<HHII", tag, kind, count, start + len(beyond))
            beyond += value
        else:
            packed = value.ljust(4, b"\0") if isinstance(value, bytes) else struct.pack("<I", value)
            table += struct.pack("<HHI", tag, kind, count) + packed
    count_and_table = struct.pack("<H", len(entries)) + table + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + count_and_table + beyond + data


TIFF_DATA = -1


def plain_tiff(width: int, height: int, *others: tuple[int, int, int, int | bytes]) -> list:
    """The entries of an uncompressed grey TIFF, without `others`' tags."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, TIFF_DATA), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height),
    ]  # fmt: skip
    tags = {entry[0] for entry in others}
    return sorted([entry for entry in entries if entry[0] not in tags] + list(others))


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    """A BMP with a palette of 16 or 256 greens where there are as few bits."""
    colours = 1 << bits if bits <= 8 else 0
    palette = b"".join(
        bytes((0, value * 255 // max(1, colours - 1), 0, 0)) for value in range(colours)
    )
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, colours, 0
    )
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + len(palette)) + header + palette + data


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int], dispose: int = 0) -> bytes:
    """A GIF of two colours whose frame (left, top, width, height) says what it likes."""
    control = b"!\xf9\x04" + bytes((dispose << 2, 0, 0, 0)) + b"\0"
    start = b"GIF89a" + struct.pack("<HH", *canvas) + b"\x80\0\0" + bytes((1, 2, 3, 200, 100, 50))
    return start + control + b"," + struct.pack("<4H", *frame) + b"\0\x02\x02L\x01\0;"


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def frames() -> dict[str, object]:
    """The options that make two further frames of an animation."""
    return {"save_all": True, "append_images": [picture(seed=number) for number in (1, 2)]}


def exif(orientation: object) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def xmp(orientation: int) -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>{orientation}'
        "</tiff:Orientation></x:xmpmeta>"
    ).encode()


def after_soi(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with further segments (marker, content) at its start."""
    added = b"".join(
        b"\xff" + bytes((marker,)) + struct.pack(">H", len(data) + 2) + data
        for marker, data in segments
    )
    return jpeg[:2] + added + jpeg[2:]


def without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.find(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


@cache
def bases() -> dict[str, bytes]:
    """Ordinary files: format and kind, and the bytes."""
    image = picture()
    grey, palette = image.convert("L"), image.quantize(32)
    alpha = image.copy()
    alpha.putalpha(grey)
    return {
        "jpeg": encoded(image, "JPEG"),
        "jpeg 444": encoded(image, "JPEG", subsampling=0, quality=95),
        "jpeg progressive": encoded(image, "JPEG", progressive=True),
        "jpeg restarts": encoded(image, "JPEG", restart_marker_blocks=2),
        "jpeg grey": encoded(grey, "JPEG"),
        "jpeg cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "jpeg cmyk without adobe": without_adobe(encoded(image.convert("CMYK"), "JPEG")),
        "jpeg rgb": encoded(image, "JPEG", keep_rgb=True),
        "jpeg exif-rotated": encoded(image, "JPEG", exif=exif(6)),
        "jpeg exif 0": encoded(image, "JPEG", exif=exif(0)),
        "jpeg exif 9": encoded(image, "JPEG", exif=exif(9)),
        "jpeg exif of text": after_soi(encoded(image, "JPEG"), (0xE1, b"Exif\0\0" + tiff([(0x0112, 2, 3, b"six")]))),
        "jpeg xmp-rotated": encoded(image, "JPEG", xmp=xmp(8)),
        "jpeg icc": encoded(image, "JPEG", icc_profile=bytes(range(256)) * 300),
        "jpeg mpo": encoded(image, "MPO", **frames()),
        "jpeg 1 x 1": encoded(picture(1, 1), "JPEG"),
        "jpeg photo": encoded(picture(640, 360), "JPEG"),
        "png": encoded(image, "PNG"),
        "png 1 bit": encoded(image.convert("1"), "PNG"),
        "png grey": encoded(grey, "PNG"),
        "png alpha": encoded(alpha, "PNG"),
        "png grey alpha": encoded(alpha.convert("LA"), "PNG"),
        "png palette": encoded(palette, "PNG"),
        "png palette transparent": encoded(palette, "PNG", transparency=bytes(range(32))),
        "png 16 bit": encoded(Image.fromarray(deep()), "PNG"),
        "png 16 bit rgb": png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0x1234, 0x8001, 0xFFFF, 1, 2, 3)),
        "png 16 bit alpha": png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0x1234, 0x8001, 0xFFFF, 9)),
        "png gamma": png(2, 2, 8, 0, b"\0\x10\x20\0\x30\x40", chunk(b"gAMA", struct.pack(">I", 100000))),
        "png icc": encoded(image, "PNG", icc_profile=bytes(range(256)) * 10),
        "png animated": encoded(image, "PNG", **frames()),
        "png exif-rotated": encoded(image, "PNG", exif=exif(6)),
        "png 1 x 1": encoded(picture(1, 1), "PNG"),
        "bmp": encoded(image, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp 1 bit": encoded(image.convert("1"), "BMP"),
        "bmp alpha": encoded(alpha, "BMP"),
        "bmp downwards": bmp(4, -2, 24, 0, bytes(range(24))),
        "bmp rle8": bmp(8, 4, 8, 1, b"\x08\x11\0\0" * 3 + b"\0\x08ABCDEFGH\0\1"),
        "bmp rle4": bmp(8, 4, 4, 2, b"\x08\x12\0\0" * 4 + b"\0\1"),
        "webp": encoded(image, "WEBP"),
        "webp lossless": encoded(image, "WEBP", lossless=True),
        "webp alpha": encoded(alpha, "WEBP"),
        "webp animated": encoded(image, "WEBP", **frames()),
        "webp exif-rotated": encoded(image, "WEBP", exif=exif(3)),
        "webp 1 x 1": encoded(picture(1, 1), "WEBP"),
        "tiff": encoded(image, "TIFF"),
        "tiff 1 bit": encoded(image.convert("1"), "TIFF", compression="group4"),
        "tiff lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(image, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encoded(image, "TIFF", compression="jpeg"),
        "tiff packbits": encoded(palette, "TIFF", compression="packbits"),
        "tiff zstd": encoded(image, "TIFF", compression="zstd"),
        "tiff cmyk": encoded(image.convert("CMYK"), "TIFF"),
        "tiff 16 bit": encoded(Image.fromarray(deep()), "TIFF"),
        "tiff 32 bit": encoded(grey.convert("I"), "TIFF"),
        "tiff float": encoded(grey.convert("F"), "TIFF"),
        "tiff lab": encoded(image.convert("LAB"), "TIFF"),
        "tiff alpha": encoded(alpha, "TIFF"),
        "tiff big": encoded(image, "TIFF", big_tiff=True),
        "tiff pages": encoded(image, "TIFF", **frames()),
        "tiff rotated": encoded(image, "TIFF", tiffinfo={0x0112: 6}),
        "tiff exif": encoded(image, "TIFF", exif=exif(8)),
        "gif": encoded(palette, "GIF"),
        "gif animated": encoded(image, "GIF", **frames()),
        "gif transparent": encoded(palette, "GIF", transparency=3),
        "gif interlaced": encoded(palette, "GIF", interlace=True),
        "gif frame outside": gif((4, 4), (2, 3, 5, 6)),
        "gif 1 x 1": encoded(picture(1, 1).convert("L"), "GIF"),
    }  # fmt: skip


# --- what can be done to a file -------------------------------------------------------------------


def _truncated(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _bits_flipped(draw: random.Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        if broken:
            broken[draw.randrange(len(broken))] ^= 1 << draw.randrange(8)
    return bytes(broken)


def _header_flipped(draw: random.Random, content: bytes) -> bytes:
    return _bits_flipped(draw, content[:120]) + content[120:]


def _bytes_changed(draw: random.Random, content: bytes) -> bytes:
    broken = bytearray(content)
    for _ in range(draw.choice((1, 3, 10))):
        if broken:
            broken[draw.randrange(len(broken))] = draw.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
    return bytes(broken)


def _number_changed(draw: random.Random, content: bytes) -> bytes:
    """A number of two, four or eight bytes somewhere in the header becomes an extreme one."""
    size = draw.choice((2, 4, 8))
    value = draw.choice(
        (
            0,
            1,
            2 ** (8 * size - 1) - 1,
            2 ** (8 * size - 1),
            2 ** (8 * size) - 1,
            65536 % 2 ** (8 * size),
        )
    )
    place = draw.randrange(2, max(3, min(len(content), 300)))
    return (
        content[:place]
        + value.to_bytes(size, draw.choice(("big", "little")))
        + content[place + size :]
    )


def _block(draw: random.Random, content: bytes) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 2, 4, 16, 200)))


def _block_removed(draw: random.Random, content: bytes) -> bytes:
    start, end = _block(draw, content)
    return content[:start] + content[end:]


def _block_doubled(draw: random.Random, content: bytes) -> bytes:
    start, end = _block(draw, content)
    return content[:end] + content[start:end] * draw.choice((1, 2, 100)) + content[end:]


def _block_zeroed(draw: random.Random, content: bytes) -> bytes:
    start, end = _block(draw, content)
    return content[:start] + bytes(end - start) + content[end:]


def _bytes_put_in(draw: random.Random, content: bytes) -> bytes:
    start, _ = _block(draw, content)
    return content[:start] + draw.randbytes(draw.choice((1, 2, 7, 64))) + content[start:]


def _spliced(draw: random.Random, content: bytes) -> bytes:
    other = draw.choice(list(bases().values()))
    return content[: draw.randrange(len(content) + 1)] + other[draw.randrange(len(other)) :]


def _garbage_behind(draw: random.Random, content: bytes) -> bytes:
    return content + draw.randbytes(draw.choice((1, 100, 5000)))


def _garbage_before(draw: random.Random, content: bytes) -> bytes:
    return draw.randbytes(draw.choice((1, 3, 100))) + content


def _magic_changed(draw: random.Random, content: bytes) -> bytes:
    magic = draw.choice((b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBP", b"\0\0\0\0", b"II+\0", b"%PDF-1.7\n", b"PK\x03\x04"))  # fmt: skip
    return magic + content[len(magic) :]


def _itself(draw: random.Random, content: bytes) -> bytes:
    return content


def _polyglot_zip(draw: random.Random, content: bytes) -> bytes:
    return content + a_zip(draw)


def _polyglot_script(draw: random.Random, content: bytes) -> bytes:
    return content + b"*/=1;alert(document.cookie)/*<script>alert(1)</script><?php system('id'); ?>"


def _polyglot_pdf(draw: random.Random, content: bytes) -> bytes:
    return (
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nstream\n" + content + b"\nendstream\nendobj\n"
    )


def _declared(draw: random.Random, content: bytes, width: int, height: int) -> bytes:
    """The same file with another width and height in its header, where we know the place."""
    if content.startswith(b"\x89PNG"):
        header = content[12:16] + struct.pack(">II", width, height) + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    if content.startswith(b"\xff\xd8"):
        for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"):
            place = content.find(marker)
            if place > 0:
                size = struct.pack(">HH", height % 65536, width % 65536)
                return content[: place + 5] + size + content[place + 9 :]
    if content.startswith(b"BM"):
        return content[:18] + struct.pack("<II", width, height) + content[26:]
    if content.startswith(b"GIF"):
        size = struct.pack("<HH", width % 65536, height % 65536)
        place = content.find(b",", 13 + 3)
        return content[:6] + size + content[10 : place + 5] + size + content[place + 9 :]
    if content[12:16] == b"VP8 ":
        return content[:26] + struct.pack("<HH", width % 16384, height % 16384) + content[30:]
    if content[12:16] == b"VP8X":
        return (
            content[:24]
            + struct.pack("<I", width - 1)[:3]
            + struct.pack("<I", height - 1)[:3]
            + content[30:]
        )
    if content.startswith(b"II*\0"):
        return _tag_set(_tag_set(content, 256, width), 257, height)
    return content


def _tag_set(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value in one tag of its first directory."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, place)[0] == tag:
            return content[:place] + struct.pack("<HHII", tag, 4, 1, value) + content[place + 12 :]
    return content


def _declared_30000(draw: random.Random, content: bytes) -> bytes:
    return _declared(draw, content, 30_000, 30_000)


def _declared_other(draw: random.Random, content: bytes) -> bytes:
    sizes = (0, 1, 2, 47, 49, 100, 255, 256, 4095, 8000, 16383, 65535, 2**31 - 1, 2**31, 2**32 - 1)
    width, height = draw.choice(sizes), draw.choice(sizes)
    return _declared(draw, content, max(1, width), height if height else draw.choice((0, 1)) or 1)


def _no_height(draw: random.Random, content: bytes) -> bytes:
    if content.startswith((b"\x89PNG", b"II")) or content[12:16] == b"VP8X":
        return _declared(draw, content, 48, 1)
    return _declared(draw, content, 48, 0)


def _frame_changed(draw: random.Random, content: bytes) -> bytes:
    """Another kind of coding or precision in a JPEG's frame header, without the data to go with."""
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"):
        place = content.find(marker)
        if content.startswith(b"\xff\xd8") and place > 0:
            coding = bytes(
                (draw.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB)),)
            )
            precision = bytes((draw.choice((8, 8, 8, 12, 16, 2)),))
            return (
                content[: place + 1]
                + coding
                + content[place + 2 : place + 4]
                + precision
                + content[place + 5 :]
            )
    return _header_flipped(draw, content)


MUTATIONS: dict[str, Mutation] = {
    "as it is": _itself,
    "wrong extension": _itself,
    "truncated": _truncated,
    "bits flipped": _bits_flipped,
    "header's bits flipped": _header_flipped,
    "bytes changed": _bytes_changed,
    "number changed": _number_changed,
    "block removed": _block_removed,
    "block doubled": _block_doubled,
    "block zeroed": _block_zeroed,
    "bytes put in": _bytes_put_in,
    "spliced": _spliced,
    "garbage behind": _garbage_behind,
    "garbage before": _garbage_before,
    "magic changed": _magic_changed,
    "polyglot with zip": _polyglot_zip,
    "polyglot with script": _polyglot_script,
    "polyglot with PDF": _polyglot_pdf,
    "30,000 x 30,000 declared": _declared_30000,
    "another size declared": _declared_other,
    "no height": _no_height,
    "another coding declared": _frame_changed,
}


def a_zip(draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        # A ZipInfo has a fixed date, a name alone the present one.
        archive.writestr(zipfile.ZipInfo("image.jpg"), draw.choice(list(bases().values())))
        archive.writestr(zipfile.ZipInfo("zeros"), bytes(draw.choice((0, 10, 10_000))))
    return buffer.getvalue()


# --- files that are no images, drawn anew each time -------------------------------------------------

NO_IMAGES: dict[str, Callable[[random.Random], bytes]] = {
    "empty": lambda draw: b"",
    "zip": a_zip,
    "html": lambda draw: b"<!DOCTYPE html><html><body>404 " + draw.randbytes(20).hex().encode() + b"</body></html>",
    "json": lambda draw: json.dumps({"error": draw.random()}).encode(),
    "svg": lambda draw: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "pdf": lambda draw: b"%PDF-1.7\n" + draw.randbytes(200),
    "elf": lambda draw: b"\x7fELF" + draw.randbytes(200),
    "noise": lambda draw: draw.randbytes(draw.choice((1, 2, 3, 16, 1000, 100_000))),
    "zeros": lambda draw: bytes(draw.choice((1, 100, 1_000_000))),
    "magic and noise": lambda draw: _magic_changed(draw, bytes(11)) + draw.randbytes(draw.choice((0, 20, 2000))),
    "newlines": lambda draw: b"\n" * draw.randrange(1, 500),
}  # fmt: skip


# --- bombs, each once -----------------------------------------------------------------------------

MB = 2**20


def _small(kind: str) -> bytes:
    return encoded(Image.new("RGB", (40, 30), (9, 99, 9)), kind)


def _in_png(*chunks: bytes) -> bytes:
    content = _small("PNG")
    return content[:33] + b"".join(chunks) + content[33:]


def _scans(size: tuple[int, int], times: int) -> bytes:
    content = encoded(Image.new("L", size, 90), "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    return content[:last] + content[last:-2] * times + content[-2:]


def _sequential_scans() -> bytes:
    """A JPEG that is not progressive, with the scan of one of its components over and over."""
    content = encoded(Image.new("RGB", (2000, 2000), (9, 99, 9)), "JPEG")
    start = content.rfind(b"\xff\xda")
    scan = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" + content[start + 14 : start + 40]
    return content[:start] + scan * 50_000 + content[-2:]


def _tiled() -> bytes:
    data = zlib.compress(bytes(12_000 * 12_000), 1)
    entries = [
        entry for entry in plain_tiff(8, 8, (259, 3, 1, 8)) if entry[0] not in (273, 278, 279)
    ]
    tiles = [
        (322, 4, 1, 12_000),
        (323, 4, 1, 12_000),
        (324, 4, 1, TIFF_DATA),
        (325, 4, 1, len(data)),
    ]
    return tiff([*entries, *tiles], data)


def _strips_over_each_other() -> bytes:
    """Of 1-bit pixels, 4000 rows less one, again and again from the same bytes."""
    count = 100_000
    offsets = b"".join(struct.pack("<I", 8 + number % 2) for number in range(count))
    bits = plain_tiff(4000, 4000, (258, 3, 1, 1), (273, 4, count, offsets), (278, 4, 1, 3999))
    return tiff(bits, bytes(2_000_000))


def _cyclic_directories() -> bytes:
    content = tiff(plain_tiff(8, 8, (0x8769, 4, 1, 8)), bytes(64))
    end = 8 + 2 + 12 * struct.unpack_from("<H", content, 8)[0]
    return content[:end] + struct.pack("<I", 8) + content[end + 4 :]


def _frames(count: int) -> bytes:
    frame = bytes(12) + bytes(4) + encoded(picture(1, 1), "WEBP")[12:]
    return webp((b"VP8X", b"\x02" + bytes(9)), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * count)


def _exif_of(count: int) -> bytes:
    """An Exif block with so many fractions for an orientation."""
    return tiff([(0x0112, 5, count, b"\1\0\0\0\2\0\0\0" * count)])


def _gif_blocks(label: bytes) -> bytes:
    content = gif((5, 5), (0, 0, 5, 5))
    return content[:19] + b"!" + label + b"\x01a" * (4 * MB) + b"\0" + content[19:]


BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG at the limit": lambda: encoded(Image.new("L", (8000, 8000), 90), "PNG"),
    "PNG palette at the limit": lambda: encoded(Image.new("P", (8000, 8000), 9), "PNG"),
    "PNG just over the limit": lambda: png(8001, 8000, 1, 0, bytes(1001 * 8000)),
    "PNG 30,000 x 30,000": lambda: png(30_000, 30_000, 1, 0, bytes(3751 * 30_000)),
    "JPEG progressive at the limit": lambda: encoded(Image.new("RGB", (8000, 8000), (3, 200, 99)), "JPEG", progressive=True),
    "JPEG CMYK of 16 Mpixel": lambda: encoded(Image.new("CMYK", (4000, 4000), (3, 200, 99, 9)), "JPEG", progressive=True),
    "WebP at the limit": lambda: encoded(Image.new("RGB", (8000, 8000), (3, 200, 99)), "WEBP", lossless=True, method=0),
    "TIFF deflate at the limit": lambda: encoded(Image.new("RGB", (8000, 8000), (3, 200, 99)), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF LZW at the limit": lambda: encoded(Image.new("L", (8000, 8000), 99), "TIFF", compression="tiff_lzw"),
    "GIF at the limit": lambda: encoded(Image.new("P", (8000, 8000), 9), "GIF"),
    "JPEG with 20,000 scans": lambda: _scans((2000, 2000), 20_000),
    "JPEG with 300,000 small scans": lambda: _scans((8, 8), 300_000),
    "JPEG of 64 Mpixel with 30 scans": lambda: _scans((8000, 8000), 30),
    "JPEG sequential with 50,000 scans": _sequential_scans,
    "JPEG with a million comments": lambda: after_soi(encoded(picture(), "JPEG", exif=exif(6)), *[(0xFE, b"")] * 1_000_000),
    "JPEG with an Exif in pieces": lambda: after_soi(_small("JPEG"), *[(0xE1, b"Exif\0\0a")] * 300_000),
    "JPEG with 4 MB of Exif": lambda: after_soi(_small("JPEG"), *[(0xE1, b"Exif\0\0" + bytes(60_000))] * 70),
    "JPEG with 20 MB between markers": lambda: after_soi(_small("JPEG"), (0xE1, b"Exif\0\0"))[:12] + bytes(20 * MB) + _small("JPEG")[2:],
    "PNG with a million chunks": lambda: _in_png(chunk(b"abCd", b"") * 1_000_000),
    "PNG with 10,000 profiles": lambda: _in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MB - 10))) * 10_000),
    "PNG with a profile of 100 MB": lambda: _in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100 * MB), 1))),
    "PNG with 200 texts of 1 MB": lambda: _in_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(MB - 10))) * 200),
    "PNG with 20 MB of Exif": lambda: _in_png(chunk(b"eXIf", _exif_of(2_500_000))),
    "WebP with 16 MB of Exif": lambda: webp((b"VP8X", b"\x08\0\0\0" + struct.pack("<I", 39)[:3] + struct.pack("<I", 29)[:3]), (b"VP8 ", _small("WEBP")[20:]), (b"EXIF", _exif_of(2_000_000))),
    "WebP canvas of 65,535 x 65,535": lambda: webp((b"VP8X", b"\x02\0\0\0" + b"\xfe\xff\0" * 2), (b"ANIM", bytes(6))),
    "WebP with 100,000 frames": lambda: _frames(100_000),
    "GIF screen of 65,535 x 65,535": lambda: gif((65_535, 65_535), (0, 0, 5, 5)),
    "GIF frame left behind": lambda: gif((5, 5), (0, 0, 65_535, 65_535), dispose=2),
    "GIF frame put back": lambda: gif((5, 5), (65_535, 65_535, 65_535, 65_535), dispose=3),
    "GIF with 4 million comments": lambda: _gif_blocks(b"\xfe"),
    "GIF with 4 million blocks": lambda: _gif_blocks(b"\x01"),
    "BMP RLE8 at the limit": lambda: bmp(8000, 8000, 8, 1, (b"\xff\x07" * 31 + b"\x5f\x07\0\0") * 8000),
    "BMP RLE4 at its limit": lambda: bmp(2000, 2000, 4, 2, (b"\xff\x17" * 7 + b"\xd7\x17\0\0") * 2000),
    "BMP RLE that goes nowhere": lambda: bmp(80, 80, 8, 1, b"\xff\x07" * (8 * MB)),
    "BMP of 2**31 rows": lambda: bmp(4, -(2**31) + 1, 24, 0, bytes(48)),
    "TIFF with 5 million strips": lambda: tiff(plain_tiff(8000, 8000, (273, 4, 5_000_000, struct.pack("<I", 8) * 5_000_000))),
    "TIFF with 2 million fractions": lambda: tiff(plain_tiff(8, 8, (282, 5, 2_000_000, b"\1\0\0\0\2\0\0\0" * 2_000_000))),
    "TIFF strips over each other": _strips_over_each_other,
    "TIFF tile of 12,000 x 12,000": _tiled,
    "TIFF directories in a circle": _cyclic_directories,
}  # fmt: skip


# --- the corpus -----------------------------------------------------------------------------------


def mutated(draw: random.Random, content: bytes, mutation: str) -> bytes:
    """The file after a mutation, and after one or two more now and then."""
    names = [mutation]
    while draw.random() < 0.15:
        names.append(draw.choice(list(MUTATIONS)))
    for name in names:
        # Of a broken file a mutation may not find what it would change.
        with contextlib.suppress(struct.error, IndexError):
            content = MUTATIONS[name](draw, content)
    return content


def corpus(seed: int, count: int, bombs: bool = True) -> Iterator[Input]:
    """Every bomb once, unless they are not wanted, and mutations; `count` inputs in all."""
    made = 0
    for name, make in BOMBS.items() if bombs else ():
        if made < count:
            yield Input(f"bomb-{made}.jpg", name, "bomb", make())
            made += 1
    kinds = list(bases())
    while made < count:
        draw = random.Random(f"{seed} {made}")
        suffix = draw.choice(SUFFIXES)
        if draw.random() < 0.05:
            name = draw.choice(list(NO_IMAGES))
            yield Input(f"{made}.{suffix}", name, "no image", NO_IMAGES[name](draw))
        else:
            base = kinds[made % len(kinds)]
            mutation = draw.choice(list(MUTATIONS))
            content = mutated(draw, bases()[base], mutation)
            yield Input(f"{made}.{suffix}", base, mutation, content)
        made += 1
