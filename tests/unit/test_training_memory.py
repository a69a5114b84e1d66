import resource
from pathlib import Path

import torch

from ml.training import memory

BYTES = 64 * 2**20


def test_memory_is_kept_while_training_and_returned_after_it() -> None:
    before = resident()

    with memory.kept():
        touch()
        again = faults()

    assert again < 1000  # of 16384 pages
    assert resident() - before < BYTES / 2


def touch() -> None:
    torch.ones(BYTES, dtype=torch.uint8)


def faults() -> int:
    """Pages that had to be fetched from the system to touch the same memory again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    touch()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()
