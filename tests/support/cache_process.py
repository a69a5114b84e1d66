"""A process that uses the cache of programs, for tests with several of them.

`python -m tests.support.cache_process CHILDREN COUNT_FILE`: each of its children, one after the
other, uses one of a few entries, which it "fetches" if they are not there, and then lets the cache
shrink to nothing. It prints how many entries were not what had been fetched.
"""

import hashlib
import os
import random
import sys
import traceback
from pathlib import Path

from ml import files
from ml.registry import cache

_BYTES = 300_000


def content(version: int) -> bytes:
    return random.Random(version).randbytes(_BYTES)


def fetch(version: int, counts: Path) -> bytes:
    """The content of an entry's file, as `ml.registry.programs` would get it."""
    path = cache.version_entry("model", version) / "model.pt2"
    cache.hold(path.parent)
    if not path.exists():
        with cache.fetching(path.parent):
            if not path.exists():
                with counts.open("a") as file:
                    file.write(f"{version}\n")
                files.atomic_write(path, content(version))
    return path.read_bytes()


def main() -> None:
    children, counts = int(sys.argv[1]), Path(sys.argv[2])
    failures = 0
    for child in range(children):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                version = (os.getppid() + child) % 3
                found = hashlib.sha256(fetch(version, counts)).digest()
                cache.evict(0)
                code = int(found != hashlib.sha256(content(version)).digest())
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(code)
        failures += os.waitpid(pid, 0)[1] != 0
    print(failures)


if __name__ == "__main__":
    main()
