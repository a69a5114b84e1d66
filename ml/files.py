"""Files that are written whole or not at all, whatever stops the process that writes them.

A file is written in a scratch folder beside its destination and then renamed, which is atomic on
one file system. The functions raise what the file system raises.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "partial-"
# A scratch folder whose files have not changed for so long was left by a process that was killed.
_STALE_AFTER_S = 3600.0


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Create an empty folder in `parent`, and delete it at the end with all that is left in it.

    Files that are complete can be renamed from it to `parent`. Scratch folders that killed
    processes have left in `parent` are deleted, too.

    Yields:
        The path of the scratch folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(parent)
    with tempfile.TemporaryDirectory(dir=parent, prefix=_PREFIX) as scratch:
        yield Path(scratch)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Let the caller write a file, which appears at `path` unless the block raises an error.

    Yields:
        Where to write the file: a path in a scratch folder, with the same file name.
    """
    with scratch_folder(path.parent) as scratch:
        yield scratch / path.name
        (scratch / path.name).replace(path)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def _remove_stale(parent: Path) -> None:
    for scratch in parent.glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # another process has just removed it
            changed = max(path.stat().st_mtime for path in (scratch, *scratch.iterdir()))
            if time.time() - changed > _STALE_AFTER_S:
                shutil.rmtree(scratch, ignore_errors=True)
