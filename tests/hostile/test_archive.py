"""Hostile tars: whatever they hold, entries that lie inside come out, or a DataError; memory is
bounded, and nothing is written."""

import bz2
import gzip
import io
import lzma
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml.data.archive import MAX_BYTES, MAX_NAME_BYTES, entries
from ml.errors import DataError

MB = 2**20


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base_256(value: int, width: int = 12) -> bytes:
    """A number as GNU tar writes those that octal digits cannot hold; negative ones too."""
    return (value % 256**width | (0x80 << 8 * (width - 1) if value >= 0 else 0)).to_bytes(
        width, "big"
    )


def header(
    name: bytes,
    size: bytes | int = 0,
    kind: bytes = b"0",
    link: bytes = b"",
    prefix: bytes = b"",
    more: bytes = b"",
) -> bytes:
    """A ustar header with a right checksum, whatever else is wrong with it; `more` is the mark of a
    sparse member that further headers follow."""
    field = octal(size, 12) if isinstance(size, int) else size
    block = bytearray(512)
    for place, part in (
        (0, name[:100]), (100, octal(0o644, 8)), (108, octal(0, 8)), (116, octal(0, 8)), (124, field[:12]),
        (136, octal(0, 12)), (148, b" " * 8), (156, kind), (157, link[:100]), (257, b"ustar\x0000"), (345, prefix[:155]), (482, more),
    ):  # fmt: skip
        block[place : place + len(part)] = part
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def member(name: bytes, content: bytes = b"content", **options: object) -> bytes:
    return header(name, len(content), **options) + padded(content)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    """A record of a pax header: its own length, in decimal, stands first."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return member(b"PaxHeader/x", b"".join(record(*each) for each in records), kind=kind)


END = bytes(1024)
GOOD = member(b"train/a/1.jpg")

# Members, each hostile in its own way, with the words that the error must hold; None where the
# member may be left out or read, but must do no harm.
HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "absolute path": (member(b"/etc/a/1.jpg"), "outside"),
    "parent": (member(b"a/../../b/1.jpg"), "outside"),
    "parent by prefix": (member(b"b/1.jpg", prefix=b"../.."), "outside"),
    "symbolic link": (header(b"a/b/1.jpg", kind=b"2", link=b"/etc/passwd"), "a link"),
    "hard link": (header(b"a/b/1.jpg", kind=b"1", link=b"train/a/1.jpg"), "a link"),
    "character device": (header(b"a/b/1.jpg", kind=b"3"), "a device"),
    "block device": (header(b"a/b/1.jpg", kind=b"4"), "a device"),
    "fifo": (header(b"a/b/1.jpg", kind=b"6"), "a device"),
    "8 GB declared": (header(b"a/b/1.jpg", 8 * 2**30 - 1), "the limit is"),
    "8 GB of no image declared": (header(b"a/b/1.txt", 8 * 2**30 - 1), "damaged"),
    "base-256 size": (header(b"a/b/1.jpg", base_256(2**70)), "the limit is"),
    "negative size": (header(b"a/b/1.jpg", base_256(-(2**20))), "the limit is"),
    "negative size of no image": (header(b"a/b/1.txt", base_256(-512)), "damaged"),
    "size of letters": (header(b"a/b/1.jpg", b"eleven\0"), "damaged"),
    "pax path to parent": (pax((b"path", b"../../b/1.jpg")) + GOOD, "outside"),
    "pax path absolute": (pax((b"path", b"/etc/b/1.jpg")) + GOOD, "outside"),
    "pax path for all members": (pax((b"path", b"/etc/b/1.jpg"), kind=b"g") + GOOD, "outside"),
    "pax size": (pax((b"size", b"99999999999")) + GOOD, "the limit is"),
    "pax size negative": (pax((b"size", b"-5000")) + GOOD, "the limit is"),
    "pax size no number": (pax((b"size", b"many")) + GOOD, None),
    "pax size of 5,000 digits": (pax((b"size", b"9" * 5000)) + GOOD, None),
    "pax name too long": (pax((b"path", b"a/" * 400 + b"b/" * 200 + b"1.jpg")) + GOOD, "the limit is"),
    "pax name with newline": (pax((b"path", b"a/b/1\n2.jpg")) + GOOD, "control"),
    "pax name with NUL": (pax((b"path", b"a/b/1\0002.jpg")) + GOOD, "control"),
    # Taken for UTF-8 since https://github.com/python/cpython/issues/121285, an error before.
    "pax charset unknown": (pax((b"hdrcharset", b"\xff\xfe")) + GOOD, None),
    "pax record of length 0": (member(b"x", b"0 path=a\n", kind=b"x") + GOOD, "damaged"),
    "pax header of 100 MB": (header(b"x", 100 * MB, b"x") + bytes(2048), "headers of a member"),
    "pax header of 2 MB": (pax((b"comment", b"x" * 2 * MB)) + GOOD, "headers of a member"),
    "pax header of -1 bytes": (header(b"x", base_256(-1), b"x") + bytes(2048), "damaged"),
    "GNU long name of 2 MB": (member(b"././@LongLink", b"a/" * MB, kind=b"L") + GOOD, "headers of a member"),
    "GNU long name to parent": (member(b"././@LongLink", b"../../etc/1.jpg\0", kind=b"L") + GOOD, "outside"),
    "long names in a chain": (member(b"././@LongLink", b"a\0", kind=b"L") * 900 + GOOD, "damaged"),
    "sparse of 1 TB": (header(b"a/b/1.jpg", 512, b"S") + bytes(512), "sparse"),
    "sparse by pax": (pax((b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"%d" % 2**40)) + GOOD, "sparse"),
    "sparse without end": (header(b"a/b/1.jpg", 0, b"S", more=b"\1"), "damaged"),
    "name with newline": (member(b"a/b/1\n.jpg"), "control"),
    "name with escape": (member(b"a/b/\x1b[2J.jpg"), "control"),
    "name not UTF-8": (member(b"a/b/\xff\xfe.jpg"), "not UTF-8"),
    "no name": (member(b""), None),
    "the same name twice": (GOOD * 2, None),
    "unknown type": (member(b"a/b/1.jpg", kind=b"Z"), None),
    "folder with content": (member(b"a/b.jpg", kind=b"5"), None),
    "hidden": (member(b"a/.b/1.jpg"), None),
}  # fmt: skip

COMPRESSED = {"tar": lambda tar: tar, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}  # fmt: skip


def read(path: Path) -> list[str]:
    """The names of the entries, after every check."""
    names = []
    for entry in entries(path):
        assert not entry.path.is_absolute() and ".." not in entry.path.parts
        assert len(entry.content) <= MAX_BYTES
        text = entry.path.as_posix()
        assert len(text.encode()) <= MAX_NAME_BYTES and not any(ord(c) < 32 for c in text)
        names.append(text)
    return names


def refusal(path: Path) -> str:
    """Why the tar is refused, "" when it is not; nothing else may be raised, nothing written."""
    before = sorted(path.parent.iterdir())
    try:
        read(path)
    except DataError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 400 + len(str(path)), message
        return message
    finally:
        assert sorted(path.parent.iterdir()) == before
    return ""


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_or_harmless(tmp_path, name, kind):
    hostile, words = HOSTILE[name]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(COMPRESSED[kind](GOOD + hostile + GOOD + END))
    message = refusal(path)
    assert words is None or words in message, message


def test_the_headers_of_these_tests_are_right(tmp_path):
    path = tmp_path / "a.tar"
    long_name = member(b"././@LongLink", b"test/" + b"b" * 200 + b"/2.jpg\0", kind=b"L")
    path.write_bytes(GOOD + long_name + GOOD + pax((b"path", "test/é/3.jpg".encode())) + GOOD + END)
    assert read(path) == ["train/a/1.jpg", "test/" + "b" * 200 + "/2.jpg", "test/é/3.jpg"]
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 3


def test_a_broken_header_in_the_middle_does_not_end_the_import_in_silence(tmp_path):
    path = tmp_path / "a.tar"
    content = bytearray(GOOD * 5 + END)
    content[2 * len(GOOD) + 150] ^= 1  # the checksum of the third
    path.write_bytes(content)
    assert "header of a member is broken" in refusal(path)
    path.write_bytes(GOOD * 5)
    assert "cut short" in refusal(path)


@st.composite
def tars(draw: st.DrawFn) -> tuple[str, bytes]:
    """A tar of good and hostile members, then broken, then compressed, then broken again."""
    names = draw(st.lists(st.sampled_from([*HOSTILE, "good", "good"]), max_size=5))
    content = b"".join(HOSTILE[name][0] if name in HOSTILE else GOOD for name in names)
    content = _broken(draw, content + draw(st.sampled_from((END, b"", bytes(100)))))
    kind = draw(st.sampled_from(list(COMPRESSED)))
    content = COMPRESSED[kind](content)
    return kind, _broken(draw, content) if kind != "tar" else content


def _broken(draw: st.DrawFn, content: bytes) -> bytes:
    how = draw(st.sampled_from(("not", "cut", "flipped", "checked")))
    generator = random.Random(draw(st.integers(0, 2**32)))
    if how == "not" or not content:
        return content
    if how == "cut":
        return content[: generator.randrange(len(content))]
    broken = bytearray(content)
    for _ in range(generator.choice((1, 3, 10))):
        broken[generator.randrange(min(len(broken), 20_000))] = generator.randrange(256)
    if how == "checked":  # with the checksums made right again, so that more is looked at
        for start in range(0, len(broken) - 511, 512):
            if broken[start + 257 : start + 262] == b"ustar":
                broken[start + 148 : start + 156] = b" " * 8
                broken[start + 148 : start + 156] = b"%06o\0 " % sum(broken[start : start + 512])
    return bytes(broken)


@given(tars())
@settings(
    max_examples=300, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
def test_any_tar_gives_entries_that_lie_inside_or_a_data_error(tmp_path, made):
    kind, content = made
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    assert refusal(path) == refusal(path)  # and nothing else is raised
    path.unlink()


def _zeros(count: int, compress: object) -> bytes:
    """A compressed tar of `count` members of 60 MB of zeros, made piece by piece."""
    stream = io.BytesIO()
    with compress(stream, "wb") as file:  # type: ignore[operator]
        for number in range(count):
            file.write(header(b"a/b/%d.jpg" % number, 60 * MB))
            for _ in range(60):
                file.write(bytes(MB))
        file.write(END)
    return stream.getvalue()


def _dictionary_of_4_gb() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
    content = bytearray(lzma.compress(GOOD + END, lzma.FORMAT_XZ, filters=filters))
    # The block header: size, flags, then filter, size of its properties, dictionary, padding, CRC.
    assert content[14:16] == b"\x21\x01"
    content[16] = 40  # 4 GiB less one byte
    import struct
    import zlib

    content[20:24] = struct.pack("<I", zlib.crc32(bytes(content[12:20])))
    return bytes(content)


def _global_headers() -> bytes:
    """Headers that hold for all members, 900 kB a time under ever new names."""
    return b"".join(pax((b"comment%d" % n, b"x" * 900_000), kind=b"g") + GOOD for n in range(200))


BOMBS = {
    "gzip of 1.2 GB": ("tar.gz", lambda: _zeros(20, lambda s, m: gzip.GzipFile(fileobj=s, mode=m, compresslevel=1)), "unpacked"),
    "bzip2 of 120 MB": ("tar.bz2", lambda: _zeros(2, lambda s, m: bz2.BZ2File(s, m)), ""),
    "xz with a dictionary of 4 GB": ("tar.xz", _dictionary_of_4_gb, "emory"),
    "pax header of 100 MB": ("tar", lambda: pax((b"comment", b"x" * 100 * MB)) + GOOD + END, "headers of a member"),
    "headers for all of 180 MB": ("tar", lambda: _global_headers() + END, "headers of a member"),
    "sparse headers in a chain": ("tar.gz", lambda: gzip.compress(header(b"a/b/1.jpg", 0, b"S", more=b"\1") + (b"1" * 504 + b"\1" + bytes(7)) * 200_000), "headers of a member"),
    "50,000 empty members": ("tar.gz", lambda: gzip.compress(header(b"a/b/1.txt") * 50_000 + END, 1), ""),
}  # fmt: skip

READER = """
import sys
from pathlib import Path
from ml.data.archive import entries
from ml.errors import DataError
from tests.hostile.child import peak_bytes
before = peak_bytes()
try:
    for entry in entries(Path(sys.argv[1])):
        del entry
    print("read")
except DataError as error:
    print(error)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_tar_that_is_a_bomb_stays_within_memory(tmp_path, name):
    kind, make, words = BOMBS[name]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True, timeout=300
    )  # fmt: skip
    message, grown = done.stdout.strip().rsplit("\n", 1)
    assert words in message if words else message == "read", message
    # Two members at most: the one handed out and the next.
    assert int(grown) < 2 * MAX_BYTES + 100 * MB
