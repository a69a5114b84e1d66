import ctypes
import json
import resource
import subprocess
import sys
from pathlib import Path

from ml.training.memory import retain_freed_memory

BYTES = 64 * 2**20


def test_memory_is_retained_while_training_and_returned_after_it() -> None:
    # In a new process, whose heap has nothing from other tests.
    output = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    result = json.loads(output.stdout)
    assert result["faults"] < 1000  # of 16384 pages
    assert result["growth"] < BYTES / 2


def _touch() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    block = library.malloc(BYTES)
    ctypes.memset(block, 1, BYTES)
    library.free(block)


def _faults() -> int:
    """The number of page faults when the same memory is touched again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    start = _resident()
    with retain_freed_memory():
        _touch()
        faults = _faults()
    print(json.dumps({"faults": faults, "growth": _resident() - start}))
