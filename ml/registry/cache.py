"""The cache of programs in the state folder: bounded in bytes, and shared by processes.

An entry is the folder of a version or of a training run. Three rules make it safe:

- A process holds a shared lock on each entry that it has used, for as long as it lives. An entry is
  removed only under an exclusive lock, so never while a process may read it.
- One process at a time fetches an entry; the others wait, and find it.
- An entry is filled by renaming complete files (`ml.files`), and removed by renaming it away first.

The locks are files outside the entries that are never deleted; the kernel releases them when a
process ends, however it ends. Where they cannot be made, as in a folder that is read-only, nothing
is removed either.
"""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ml import files
from ml.errors import ConfigurationError
from ml.settings import state_folder

log = logging.getLogger(__name__)

VARIABLE = "NIGHTSCORE_CACHE_LIMIT"
DEFAULT_LIMIT = 2 * 2**30
_UNITS = {"MiB": 2**20, "GiB": 2**30}

_mutex = threading.Lock()
# Entry → its file, locked by this process.
_held: dict[Path, TextIO] = {}


def limit() -> int:
    """Return `NIGHTSCORE_CACHE_LIMIT` in bytes, by default 2 GiB.

    Raises:
        ConfigurationError: It is not an amount such as 4GiB or 512MiB.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return DEFAULT_LIMIT
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MiB|GiB)", value)
    if match is None:
        raise ConfigurationError(f"{VARIABLE} is {value!r}.", "It is an amount: 4GiB or 512MiB.")
    return int(float(match[1]) * _UNITS[match[2]])


def version_entry(model: str, version: int) -> Path:
    """Return the folder in which this machine caches a version's files."""
    return _folder() / "programs" / model / str(version)


def run_entry(run_id: str) -> Path:
    """Return the folder in which this machine caches the program of a training run."""
    return _folder() / "runs" / run_id


def hold(entry: Path) -> None:
    """Keep an entry, which need not exist yet, from being removed while this process lives."""
    with _mutex, suppress(OSError):
        if entry not in _held:
            file = _open_lock(entry, "use")
            fcntl.flock(file, fcntl.LOCK_SH)  # it waits while the entry is being removed
            _held[entry] = file
        os.utime(_lock_path(entry, "use"))  # what `evict` goes by


@contextmanager
def fetching(entry: Path) -> Iterator[None]:
    """Let one process at a time fetch an entry; afterwards, remove what exceeds the limit.

    Raises:
        ConfigurationError: `NIGHTSCORE_CACHE_LIMIT` is wrong.
    """
    bytes_limit = limit()
    file = None
    with suppress(OSError):
        file = _open_lock(entry, "fetch")
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            file.close()
    evict(bytes_limit)


def evict(bytes_limit: int) -> None:
    """Remove the least recently used entries until the others are within a limit.

    Entries that a process holds stay, so the limit can be exceeded by what is in use.

    Args:
        bytes_limit: the size of all entries together, in bytes.
    """
    sizes = {entry: _size(entry) for entry in _entries()}
    total = sum(sizes.values())
    for entry in sorted(sizes, key=_last_used):
        if total <= bytes_limit:
            return
        if _remove(entry):
            log.info("Removed %s from the cache, %s bytes", entry, sizes[entry])
            total -= sizes[entry]


def _folder() -> Path:
    return state_folder() / "cache"


def _entries() -> list[Path]:
    versions = (path for path in _folder().glob("programs/*/*") if path.name.isdigit())
    return [path for path in (*versions, *_folder().glob("runs/*")) if path.is_dir()]


def _lock_path(entry: Path, purpose: str) -> Path:
    name = "-".join(entry.relative_to(_folder()).parts)
    return _folder() / "locks" / f"{name}.{purpose}"


def _open_lock(entry: Path, purpose: str) -> TextIO:
    path = _lock_path(entry, purpose)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _last_used(entry: Path) -> float:
    """Return when an entry was used last; for one without a lock, when it was filled."""
    for path in (_lock_path(entry, "use"), entry):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _size(entry: Path) -> int:
    size = 0
    # Other processes rename and remove files; `os.walk` passes over folders that are gone.
    for folder, _, names in os.walk(entry):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(folder, name).stat().st_size
    return size


def _remove(entry: Path) -> bool:
    """Remove an entry unless a process holds it; returns whether it is gone."""
    try:
        with _open_lock(entry, "use") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Half an entry is never seen, and a killed process leaves what is cleaned up later.
            with files.scratch_folder(_folder() / "removed") as scratch:
                entry.rename(scratch / entry.name)
    except FileNotFoundError:
        return True  # another process was first
    except OSError:  # it is held, or the folder is read-only
        return False
    return True
