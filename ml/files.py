"""Files that are there whole or not at all, whatever stops the process that writes them."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL = "partial-"
# To write takes less; what is older was left by a process that was killed.
_STALE_AFTER_S = 3600.0


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder in `folder`, from which a complete file can be moved there; what is left in
    it goes away, and with it what a killed process has left. What the file system raises passes
    through."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PARTIAL) as made:
        yield Path(made)


def write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. What the file system raises passes through."""
    with scratch(path.parent) as folder:
        (folder / path.name).write_bytes(content)
        (folder / path.name).replace(path)


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f"{_PARTIAL}*"):
        with suppress(FileNotFoundError):  # another process has just removed it
            if time.time() - left.stat().st_mtime > _STALE_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)
