"""What a file declares before its pixels: each limit is reached, and passed by one."""

import struct

import pytest

from ml.images import headers
from ml.images.headers import LimitedReader, TooComplexError, check_jpeg, check_png, check_tiff

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
# What is compressed: a byte, one that is stuffed, a restart.
PIXELS = b"\x11\xff\0\x22\xff\xd0\x33"


def segment(marker: int, data: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data


def frame(marker: int, width: int, height: int, components: int = 3) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, components))


def scan(components: int = 3) -> bytes:
    return segment(0xDA, bytes([components])) + PIXELS


@pytest.mark.parametrize("marker", range(0xC0, 0xD0))
def test_a_jpeg_s_size_is_that_of_its_frame_and_the_progressive_ones_are_buffered(marker):
    header = check_jpeg(SOI + frame(marker, 40, 24) + scan() + EOI)
    if marker in (0xC4, 0xC8, 0xCC):  # tables, and what is kept for later
        assert header == (0, 0, False)
    else:
        assert header == (40, 24, marker in (0xC2, 0xC6, 0xCA, 0xCE))


def test_a_jpeg_whose_scans_have_a_component_each_is_buffered():
    assert check_jpeg(SOI + frame(0xC0, 40, 24) + scan(1) * 3 + EOI) == (40, 24, True)
    assert check_jpeg(SOI + frame(0xC0, 40, 24, 1) + scan(1) + EOI) == (40, 24, False)


@pytest.mark.parametrize("between", [b"\xff\xff\xff", b"\xff\x01", b"\xff\xd0", b"\xff\xd8", b"\xff\0", b"ab"])  # fmt: skip
def test_what_may_lie_between_segments_hides_none(between):
    content = SOI + between + frame(0xC2, 40, 24) + between + scan() + EOI
    assert check_jpeg(content) == (40, 24, True)


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff", b"\xff\xc0", b"\xff\xc0\0", b"\xff\xc0\0\x08\x08\0"])  # fmt: skip
def test_a_jpeg_that_ends_within_a_segment_has_what_was_read_so_far(end):
    assert check_jpeg(SOI + end) == (0, 0, False)
    assert check_jpeg(SOI + frame(0xC2, 40, 24) + end) == (40, 24, True)


def test_segments_are_counted():
    largest = SOI + segment(0xFE) * 10_000
    check_jpeg(largest)
    with pytest.raises(TooComplexError, match="segments"):
        check_jpeg(largest + segment(0xFE))


def test_exif_is_counted_and_a_small_part_like_one_of_16_kib():
    small, large = segment(0xE1, b"Exif\0\0a"), segment(0xE1, b"Exif\0\0".ljust(2**15))
    for largest in (small * 64, large * 32, large * 31 + small * 2):
        check_jpeg(SOI + largest)
        with pytest.raises(TooComplexError, match="Exif"):
            check_jpeg(SOI + largest + small)


def test_what_is_no_exif_is_not_counted_as_exif():
    check_jpeg(SOI + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0") * 65)
    check_jpeg(SOI + segment(0xFE, b"Exif\0\0") * 65)


@pytest.mark.parametrize(
    ("width", "height", "components", "limit"),
    [
        (100, 100, 3, 500),
        (0, 0, 3, 500),
        (4000, 4000, 3, 50),  # as many as come to 800 million pixels
        (8000, 8000, 1, 12),
        (8000, 8000, 3, 14),  # as libjpeg may write them, 2 and 4 a component
        (8000, 8000, 4, 18),
    ],
)
def test_scans_of_a_buffered_jpeg_are_counted(width, height, components, limit):
    start = SOI + frame(0xC2, width, height, components)
    check_jpeg(start + scan() * limit + EOI)
    with pytest.raises(TooComplexError, match=f"more than {limit} scans"):
        check_jpeg(start + scan() * (limit + 1) + EOI)


def test_what_only_looks_like_a_scan_is_not_counted():
    start = SOI + frame(0xC2, 100, 100) + scan()
    check_jpeg(start + segment(0xFE, scan() * 600) + scan() * 499 + EOI)
    check_jpeg(start + EOI + scan() * 600)
    check_jpeg(SOI + frame(0xC0, 100, 100) + scan() * 600 + EOI)
    with pytest.raises(TooComplexError):
        check_jpeg(start + segment(0xFE, scan()) + scan() * 500 + EOI)
    with pytest.raises(TooComplexError):
        check_jpeg(start + (b"\xff\xfe\0\0" + scan()) * 500 + EOI)  # segments without a length


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_s_compressed_chunks_are_counted(kind):
    others = b"iCCP" + b"zTXt" * 100 + b"iTXt" * 100
    check_png(others + kind * 55 + b"tEXt" * 300)
    with pytest.raises(TooComplexError, match="257 compressed chunks"):
        check_png(others + kind * 56)


TIFFS = pytest.mark.parametrize(
    ("order", "large"), [("<", False), (">", False), ("<", True), (">", True)]
)
Entries = list[tuple[int, int, int, int]]


def tiff(order: str, large: bool, *directories: Entries) -> bytes:
    """A TIFF, or a BigTIFF, of directories one after the other; a value -1 refers to the next."""
    mark = b"II" if order == "<" else b"MM"
    content = mark + struct.pack(*([f"{order}HHHQ", 43, 8, 0, 16] if large else [f"{order}HI", 42, 8]))  # fmt: skip
    for entries in directories:
        head, entry = (f"{order}Q", f"{order}HHQQ") if large else (f"{order}H", f"{order}HHII")
        size = struct.calcsize(head) + len(entries) * struct.calcsize(entry)
        after = len(content) + size
        content += struct.pack(head, len(entries))
        for tag, kind, count, value in entries:
            content += struct.pack(entry, tag, kind, count, after if value < 0 else value)
    return content


@TIFFS
def test_numbers_in_a_tiff_s_tags_are_counted_and_bytes_are_one(order, large):
    bytes_of_any_length = [(700 + kind, kind, 10**9, 0) for kind in (1, 2, 7)]
    largest: Entries = [*bytes_of_any_length, (273, 4, 200_000 - 3 - 1, 0)]
    check_tiff(tiff(order, large, [*largest, (256, 3, 1, 0)]))
    with pytest.raises(TooComplexError, match="numbers"):
        check_tiff(tiff(order, large, [*largest, (256, 3, 2, 0)]))


@TIFFS
@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])
def test_a_tiff_s_numbers_are_those_of_its_inner_directories_too(order, large, tag):
    inner: Entries = [(1, 5, 200_000 - 1, 0)]
    check_tiff(tiff(order, large, [(tag, 4, 1, -1)], inner))
    check_tiff(tiff(order, large, [(tag + 1, 4, 1, -1)], [(1, 5, 10**9, 0)]))
    with pytest.raises(TooComplexError, match="numbers"):
        check_tiff(tiff(order, large, [(tag, 4, 1, -1), (256, 3, 1, 0)], inner))


@TIFFS
def test_a_tiff_s_directories_are_counted_once_each(order, large):
    inner: Entries = [(0x8769, 4, 1, -1)]
    first = 16 if large else 8
    check_tiff(tiff(order, large, *[inner] * 15, [(0x8769, 4, 1, first)]))
    with pytest.raises(TooComplexError, match="directories"):
        check_tiff(tiff(order, large, *[inner] * 16, []))


@TIFFS
def test_a_tiff_that_is_cut_short_is_left_to_the_parser(order, large):
    content = tiff(order, large, [(256, 3, 1, 0), (0x8769, 4, 1, -1)], [(1, 5, 1, 0)])
    for end in range(len(content)):
        check_tiff(content[:end])


def test_a_parser_s_reads_are_counted(monkeypatch):
    monkeypatch.setattr(headers, "MAX_READS", 3)
    reader = LimitedReader(b"abcd")
    assert [reader.read(1), reader.read(2), reader.read()] == [b"a", b"bc", b"d"]
    with pytest.raises(TooComplexError, match="more parts than 3 reads"):
        reader.read(1)
