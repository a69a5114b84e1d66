"""The image files of a folder or a tar, as a stream; nothing is unpacked to disk."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ml.errors import DataError
from ml.images.formats import SUFFIXES

MAX_BYTES = 64 * 1024 * 1024
# S3's limit for a key.
MAX_NAME_BYTES = 1024
# Of one member, with the extended headers before it, and of those that hold for all members.
_MOST_HEADER_BYTES = 2**20
# A compressed tar may come to so many times its own size, and to this in any case.
_MOST_EXPANSION, _ALWAYS_EXPANDED = 100, 2**30
_XZ_MEMORY = 256 * 2**20
_CHUNK = 2**16
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, slots=True)
class Entry:
    """An image file: its path within the source, with slashes, and its bytes, undecoded."""

    path: PurePosixPath
    content: bytes


@dataclass(frozen=True, slots=True)
class Labelled:
    """An entry laid out SPLIT/CLASS/FILE."""

    split: str
    label: str
    name: str
    content: bytes


def entries(path: Path) -> Iterator[Entry]:
    """The image files of a folder or tar, by suffix, in a fixed order for a folder.

    Hidden files and files that are no images by name are passed over.

    Raises:
        DataError: `path` is neither folder nor tar, the tar is damaged or cut short, or a member is
            hostile: an absolute path, a path with `..`, a name that is no text or too long for S3,
            a link, a device, sparse, larger than 64 MiB, or with more than 1 MiB of headers. So is
            a compressed tar that comes to more than 100 times its size (and more than 1 GiB).
    """
    if path.is_dir():
        yield from _of_folder(path)
    elif path.is_file() and path.name.lower().endswith(_TAR_SUFFIXES):
        yield from _of_tar(path)
    elif path.exists():
        raise DataError(f"{path} is neither a folder nor a tar file.")
    else:
        raise DataError(f"{path} does not exist.")


def labelled(
    path: Path, on_other: Callable[[Entry], None] = lambda entry: None
) -> Iterator[Labelled]:
    """The entries laid out SPLIT/CLASS/FILE, whatever folders stand before.

    Others are left out; `on_other` hears of each.
    """
    for entry in entries(path):
        if len(entry.path.parts) >= 3:
            split, label, name = entry.path.parts[-3:]
            yield Labelled(split, label, name, entry.content)
        else:
            on_other(entry)


def _of_folder(folder: Path) -> Iterator[Entry]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            file = Path(parent) / name
            relative = PurePosixPath(file.relative_to(folder).as_posix())
            if not _is_image(relative):
                continue
            _check_name(repr(str(file))[:200], relative)
            if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{file} is a link that leads out of {folder}.")
            _check_size(str(file), file.stat().st_size)
            yield Entry(relative, file.read_bytes())


def _of_tar(path: Path) -> Iterator[Entry]:
    try:
        with path.open("rb") as file:
            forward = _Forward(file, path.stat().st_size)
            # "r:" leaves decompression, and how much is read at once, to `forward`.
            with tarfile.open(fileobj=cast(BinaryIO, forward), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    relative = _checked(member, path)
                    if relative is not None:
                        yield Entry(relative, forward.member(member.offset_data, member.size))
                    # tarfile keeps a list of its members, which would grow with the archive.
                    tar.members = []  # type: ignore[attr-defined]
                    forward.begin_header(tar.pax_headers)
            forward.check_end()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a parser may raise anything on hostile bytes
        message = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is a damaged tar file: {message or type(error).__name__}."
        ) from error


class _Forward:
    """A tar's bytes, decompressed, as tarfile reads them: forwards only, and bounded.

    Args:
        file: the archive, at its start.
        size: its bytes as stored.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        start = file.read(6)
        file.seek(0)
        self._file = file
        self._is_plain = False
        self._most = max(_MOST_EXPANSION * size, _ALWAYS_EXPANDED)
        if start.startswith(b"\x1f\x8b"):
            self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif start.startswith(b"BZh"):
            self._file = cast(BinaryIO, bz2.BZ2File(file))
        elif start.startswith((b"\xfd7zXZ", b"]\0\0")):
            self._file = cast(BinaryIO, io.BufferedReader(_Xz(file), _CHUNK))
        else:
            self._is_plain = True
        self._place = 0
        self._header_bytes = 0
        self._last = b""

    def begin_header(self, for_all: Mapping[str, str]) -> None:
        """The next member's headers begin; `for_all` has been said of all members so far."""
        self._header_bytes = sum(len(key) + len(value) for key, value in for_all.items())

    def read(self, size: int) -> bytes:
        """A header, or a part of one; tarfile takes the length of some from the archive."""
        self._header_bytes += size
        if size < 0 or self._header_bytes > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"the headers of a member exceed {_MOST_HEADER_BYTES} bytes")
        self._last = self._taken(size)
        return self._last

    def member(self, place: int, size: int) -> bytes:
        """A member's content."""
        self.seek(place)
        content = self._taken(size)
        if len(content) < size:
            raise tarfile.ReadError("unexpected end of data")
        return content

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.ReadError("a header leads back")
        if self._is_plain:
            self._place = self._file.seek(place)
            return
        while self._place < place and self._taken(min(_CHUNK, place - self._place)):
            pass

    def check_end(self) -> None:
        """Whether tarfile stopped at the end mark, zeros; it also stops at a broken header."""
        if not self._last or self._last.strip(b"\0"):
            raise tarfile.ReadError("it is cut short, or the header of a member is broken")

    def close(self) -> None:
        self._file.close()

    def _taken(self, size: int) -> bytes:
        content = self._file.read(size)
        self._place += len(content)
        if not self._is_plain and self._place > self._most:
            raise tarfile.ReadError(f"it comes to more than {self._most} bytes unpacked")
        return content


class _Xz(io.RawIOBase):
    """What an xz file holds. Unlike `lzma.open` it refuses one that asks for a dictionary of
    gigabytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, room) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        while True:
            if self._decoder.eof:
                data = (self._decoder.unused_data or self._file.read(_CHUNK)).lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self._decoder.needs_input:
                data = self._file.read(_CHUNK)
                if not data:
                    raise EOFError("the compressed data are cut short")
            else:
                data = b""
            found = self._decoder.decompress(data, max_length=len(room))
            if found:
                room[: len(found)] = found
                return len(found)


def _checked(member: tarfile.TarInfo, path: Path) -> PurePosixPath | None:
    """The member's path, None when it is no image file; raises DataError when it is hostile."""
    relative = PurePosixPath(member.name)
    name = f"{path}: member {member.name[:100]!r}"
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{name} points outside the archive.")
    if member.issym() or member.islnk() or member.isdev():
        raise DataError(f"{name} is a link or a device, not a file.")
    if not member.isfile() or not _is_image(relative):
        return None
    if member.issparse():
        raise DataError(f"{name} is sparse.", "Make the tar without --sparse.")
    _check_name(name, relative)
    _check_size(name, member.size)
    return relative


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _check_size(name: str, size: int) -> None:
    if not 0 <= size <= MAX_BYTES:
        raise DataError(f"{name} holds {size} bytes; the limit is {MAX_BYTES}.")


def _check_name(name: str, path: PurePosixPath) -> None:
    """`name` is how to speak of the file, `path` what it is stored under."""
    text = path.as_posix()
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in text):
        raise DataError(f"{name} has control characters in its name.")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"{name} has a name that is not UTF-8.") from None
    if length > MAX_NAME_BYTES:
        raise DataError(f"{name} has a name of {length} bytes; the limit is {MAX_NAME_BYTES}.")
