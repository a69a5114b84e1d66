"""Read the image files of a folder or a tar, one after the other; nothing is unpacked to disk."""

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
# The headers of one member: its own, the extended ones before it, and those of the whole archive.
_MAX_HEADER_BYTES = 2**20
# A compressed tar may expand to this many times its size, and in any case to this many bytes.
_MAX_EXPANSION, _MIN_EXPANDED_LIMIT = 100, 2**30
_MAX_XZ_MEMORY = 256 * 2**20
_CHUNK_BYTES = 2**16
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True, slots=True)
class Entry:
    """An image file.

    Attributes:
        path: within the folder or tar, with slashes.
        content: its bytes, not decoded.
    """

    path: PurePosixPath
    content: bytes


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image file laid out SPLIT/CLASS/FILE.

    Attributes:
        split: the name of the split.
        label: the name of the class.
        name: of the file.
        content: its bytes, not decoded.
    """

    split: str
    label: str
    name: str
    content: bytes


def entries(path: Path) -> Iterator[Entry]:
    """Iterate over the image files of a folder or tar.

    The suffix decides what is an image. Other files and hidden files are skipped. The files of a
    folder come in the order of their names.

    Raises:
        DataError: `path` is neither a folder nor a tar, the tar is damaged or cut short, or it is
            hostile. It is if a member has an absolute path, a path with `..`, a name that is not
            text or too long for S3, or more than 1 MiB of headers; if a member is a link, a device,
            sparse, or larger than 64 MiB; or if a compressed tar expands to more than 100 times its
            size and more than 1 GiB.
    """
    if path.is_dir():
        yield from _iter_folder(path)
    elif path.is_file() and path.name.lower().endswith(_TAR_SUFFIXES):
        yield from _iter_tar(path)
    elif path.exists():
        raise DataError(f"{path} is neither a folder nor a tar file.")
    else:
        raise DataError(f"{path} does not exist.")


def labelled_images(
    path: Path, on_other: Callable[[Entry], None] = lambda entry: None
) -> Iterator[LabelledImage]:
    """Iterate over the image files laid out SPLIT/CLASS/FILE, in whatever folders these are.

    Args:
        path: a folder or tar.
        on_other: is called with each image file that is laid out otherwise.

    Raises:
        DataError: see `entries`.
    """
    for entry in entries(path):
        if len(entry.path.parts) >= 3:
            split, label, name = entry.path.parts[-3:]
            yield LabelledImage(split, label, name, entry.content)
        else:
            on_other(entry)


def _iter_folder(folder: Path) -> Iterator[Entry]:
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


def _iter_tar(path: Path) -> Iterator[Entry]:
    try:
        with path.open("rb") as file:
            reader = _TarReader(file, path.stat().st_size)
            # "r:" leaves decompression, and how much is read at once, to `reader`.
            with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r:") as tar:
                while (member := tar.next()) is not None:
                    relative = _check_member(member, path)
                    if relative is not None:
                        yield Entry(relative, reader.read_member(member.offset_data, member.size))
                    # tarfile keeps a list of its members, which would grow with the archive.
                    tar.members = []  # type: ignore[attr-defined]
                    reader.begin_header(tar.pax_headers)
            reader.check_end()
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a parser may raise anything on hostile bytes
        message = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path} is a damaged tar file: {message or type(error).__name__}."
        ) from error


class _TarReader:
    """The decompressed bytes of a tar: read forwards only, and with limits.

    Args:
        file: the archive, at its start.
        size: the archive's size in bytes, as it is stored.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        signature = file.read(6)
        file.seek(0)
        self._file = file
        self._is_plain = False
        self._max_bytes = max(_MAX_EXPANSION * size, _MIN_EXPANDED_LIMIT)
        if signature.startswith(b"\x1f\x8b"):
            self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file))
        elif signature.startswith(b"BZh"):
            self._file = cast(BinaryIO, bz2.BZ2File(file))
        elif signature.startswith((b"\xfd7zXZ", b"]\0\0")):
            self._file = cast(BinaryIO, io.BufferedReader(_XzReader(file), _CHUNK_BYTES))
        else:
            self._is_plain = True
        self._position = 0
        self._header_bytes = 0
        self._last_read = b""

    def begin_header(self, global_headers: Mapping[str, str]) -> None:
        """Begin to count the header bytes of the next member.

        Args:
            global_headers: the headers of the whole archive that have been read so far.
        """
        self._header_bytes = sum(len(key) + len(value) for key, value in global_headers.items())

    def read(self, size: int) -> bytes:
        """Read a header or a part of it; some lengths are given by the archive."""
        self._header_bytes += size
        if size < 0 or self._header_bytes > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"the headers of a member exceed {_MAX_HEADER_BYTES} bytes")
        self._last_read = self._read(size)
        return self._last_read

    def read_member(self, position: int, size: int) -> bytes:
        """Read the content of a member."""
        self.seek(position)
        content = self._read(size)
        if len(content) < size:
            raise tarfile.ReadError("unexpected end of data")
        return content

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Move forwards.

        Raises:
            tarfile.ReadError: the position is behind the current one.
        """
        if position < self._position:
            raise tarfile.ReadError("a header leads back")
        if self._is_plain:
            self._position = self._file.seek(position)
            return
        while self._position < position and self._read(
            min(_CHUNK_BYTES, position - self._position)
        ):
            pass

    def check_end(self) -> None:
        """Check that tarfile stopped at the end mark, a block of zeros, and not before.

        Raises:
            tarfile.ReadError: it stopped at a broken header, or where the archive is cut short.
        """
        if not self._last_read or self._last_read.strip(b"\0"):
            raise tarfile.ReadError("it is cut short, or the header of a member is broken")

    def close(self) -> None:
        self._file.close()

    def _read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._position += len(content)
        if not self._is_plain and self._position > self._max_bytes:
            raise tarfile.ReadError(f"it comes to more than {self._max_bytes} bytes unpacked")
        return content


class _XzReader(io.RawIOBase):
    """The decompressed bytes of an xz file.

    Unlike `lzma.open` it refuses a file whose dictionary would take gigabytes of memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        while True:
            if self._decoder.eof:
                data = (self._decoder.unused_data or self._file.read(_CHUNK_BYTES)).lstrip(b"\0")
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY)
            elif self._decoder.needs_input:
                data = self._file.read(_CHUNK_BYTES)
                if not data:
                    raise EOFError("the compressed data are cut short")
            else:
                data = b""
            chunk = self._decoder.decompress(data, max_length=len(buffer))
            if chunk:
                buffer[: len(chunk)] = chunk
                return len(chunk)


def _check_member(member: tarfile.TarInfo, path: Path) -> PurePosixPath | None:
    """The path of a member, or None if it is not an image file.

    Raises:
        DataError: the member is hostile.
    """
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
    is_hidden = any(part.startswith(".") for part in path.parts)
    return not is_hidden and path.suffix.lower() in SUFFIXES


def _check_size(name: str, size: int) -> None:
    if not 0 <= size <= MAX_BYTES:
        raise DataError(f"{name} holds {size} bytes; the limit is {MAX_BYTES}.")


def _check_name(name: str, path: PurePosixPath) -> None:
    """Raise DataError unless `path` can be a key in S3; `name` is the file's name in messages."""
    text = path.as_posix()
    if any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in text):
        raise DataError(f"{name} has control characters in its name.")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise DataError(f"{name} has a name that is not UTF-8.") from None
    if length > MAX_NAME_BYTES:
        raise DataError(f"{name} has a name of {length} bytes; the limit is {MAX_NAME_BYTES}.")
