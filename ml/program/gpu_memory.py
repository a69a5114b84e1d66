"""How much memory of a GPU this process may take, and running out of it as an error with a name.

torch's allocator keeps what was freed, so without a limit a process holds the most it ever needed,
and several on one GPU find out by failing.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ml.errors import ConfigurationError, GpuMemoryError
from ml.program.device import Device

VARIABLE = "NIGHTSCORE_GPU_MEMORY"
_UNITS = {"": 1.0, "MiB": 2.0**20, "GiB": 2.0**30}
# Not every library reports through torch's allocator; CUDA, cuBLAS and cuDNN say it in these words.
_OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def limit(total: int) -> int | None:
    """`NIGHTSCORE_GPU_MEMORY` in bytes, of a GPU with `total` bytes; None when it is not set.

    It is a share of the GPU's memory (`0.5`) or an amount (`8GiB`, `512MiB`); more than there is
    means all of it. Raises ConfigurationError for anything else.
    """
    wish = os.environ.get(VARIABLE, "").strip()
    if not wish:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MiB|GiB|)", wish)
    amount = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if found is None or amount <= 0 or (not found[2] and amount > 1):
        raise ConfigurationError(
            f"{VARIABLE} is {wish!r}.",
            "It is a share of the GPU's memory such as 0.5, or an amount such as 8GiB or 512MiB.",
        )
    return min(total, int(amount if found[2] else amount * total))


def apply_limit() -> int | None:
    """Keep torch's allocator in this process below `limit`; returns it in bytes.

    CUDA's own context and libraries, half a gigabyte or so for each process, come on top.
    """
    if not os.environ.get(VARIABLE, "").strip():
        return None
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    allowed = limit(total)
    if allowed is not None:
        torch.cuda.set_per_process_memory_fraction(allowed / total)
    return allowed


@contextmanager
def memory_errors(device: Device) -> Iterator[None]:
    """Turn torch's errors about a GPU that is full into GpuMemoryError; on a CPU do nothing."""
    try:
        yield
    except Exception as error:  # of several classes, some of them torch's own
        if device != "cuda" or not is_out_of_memory(error):
            raise
        raise GpuMemoryError(
            f"There is too little GPU memory{_state()}.",
            f"Raise or unset {VARIABLE}, or try again when other processes have left the GPU.",
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error that torch raised says that the GPU's memory, or the limit, is used up."""
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def _state() -> str:
    """What is held and what is free, as far as the GPU still answers."""
    said = f"; {VARIABLE} is {wish}" if (wish := os.environ.get(VARIABLE, "").strip()) else ""
    with suppress(Exception):
        import torch

        free, total = (part // 2**20 for part in torch.cuda.mem_get_info())
        held = torch.cuda.memory_reserved() // 2**20
        return f": this process holds {held} MiB, {free} of {total} MiB are free{said}"
    return said
