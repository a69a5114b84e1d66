"""The image files of a folder or a tar, as a stream; nothing is unpacked to disk."""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ml.errors import DataError
from ml.images import SUFFIXES

MAX_BYTES = 64 * 1024 * 1024
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

    Raises
    ------
    DataError: `path` is neither folder nor tar, the tar is damaged, or a member is hostile: an
        absolute path, a path with `..`, a link, a device, or larger than 64 MiB.
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
            if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"{file} is a link that leads out of {folder}.")
            _check_size(str(file), file.stat().st_size)
            yield Entry(relative, file.read_bytes())


def _of_tar(path: Path) -> Iterator[Entry]:
    try:
        # "r|*" reads forward only, so memory does not grow with the number of members.
        with tarfile.open(path, "r|*") as tar:
            while (member := tar.next()) is not None:
                relative = _checked(member, path)
                if relative is not None:
                    file = tar.extractfile(member)
                    assert file is not None  # it is a regular file
                    yield Entry(relative, file.read())
                # tarfile keeps a list of its members, which would grow with the archive.
                tar.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} is a damaged tar file: {error}.") from error


def _checked(member: tarfile.TarInfo, path: Path) -> PurePosixPath | None:
    """The member's path, None when it is no image file; raises DataError when it is hostile."""
    relative = PurePosixPath(member.name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{path}: member {member.name!r} points outside the archive.")
    if member.issym() or member.islnk() or member.isdev():
        raise DataError(f"{path}: member {member.name!r} is a link or a device, not a file.")
    if not member.isfile() or not _is_image(relative):
        return None
    _check_size(f"{path}: member {member.name!r}", member.size)
    return relative


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


def _check_size(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{name} holds {size} bytes; the limit is {MAX_BYTES}.")
