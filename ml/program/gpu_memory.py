"""A limit of this process's GPU memory, and a named error when the memory is used up.

torch's allocator keeps freed memory. So a process without a limit holds the most memory that it
ever needed, and the other processes on the GPU fail for lack of it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ml.errors import ConfigurationError, GpuMemoryError
from ml.program.device import Device

VARIABLE = "NIGHTSCORE_GPU_MEMORY"
_UNITS = {"": 1.0, "MiB": 2.0**20, "GiB": 2.0**30}
# Parts of the messages of torch's allocator, CUDA, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")


def limit(total: int) -> int | None:
    """Return `NIGHTSCORE_GPU_MEMORY` in bytes; None if it is not set.

    It is a share of the GPU's memory (`0.5`) or an amount (`8GiB`, `512MiB`).

    Args:
        total: The GPU's memory in bytes, which the result does not exceed.

    Raises:
        ConfigurationError: It is something else.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MiB|GiB|)", value)
    amount = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if match is None or amount <= 0 or (not match[2] and amount > 1):
        raise ConfigurationError(
            f"{VARIABLE} is {value!r}.",
            "It is a share of the GPU's memory such as 0.5, or an amount such as 8GiB or 512MiB.",
        )
    return min(total, int(amount if match[2] else amount * total))


def apply_limit() -> int | None:
    """Make torch's allocator in this process keep to `limit`, and return that in bytes.

    CUDA's context and libraries take about half a gigabyte per process in addition.
    """
    if not os.environ.get(VARIABLE, "").strip():
        return None
    import torch

    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    limit_bytes = limit(total)
    if limit_bytes is not None:
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total)
    return limit_bytes


def available() -> int:
    """Return how many bytes of the current GPU this process may still take.

    Raises:
        ConfigurationError: `NIGHTSCORE_GPU_MEMORY` is not an amount of memory.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    allocated = torch.cuda.memory_allocated()
    # What torch's allocator holds without a tensor in it is for us.
    usable = free + torch.cuda.memory_reserved() - allocated
    limit_bytes = limit(total)
    if limit_bytes is None:
        return usable
    return max(0, min(usable, limit_bytes - allocated))


@contextmanager
def memory_errors(device: Device) -> Iterator[None]:
    """Turn torch's errors about used-up GPU memory into our own; on a CPU, do nothing.

    Raises:
        GpuMemoryError: The GPU's memory, or the limit, is used up.
    """
    try:
        yield
    except Exception as error:  # the error may be of several classes
        if device != "cuda" or not _is_out_of_memory(error):
            raise
        raise GpuMemoryError(
            f"There is too little GPU memory{_usage()}.",
            f"Raise or unset {VARIABLE}, or try again when other processes have left the GPU.",
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of torch means that the GPU's memory, or the limit, is used up."""
    return any(message in str(error) for message in _OUT_OF_MEMORY)


def _usage() -> str:
    """Return used and free memory, if the GPU still responds, and the limit, if there is one."""
    value = os.environ.get(VARIABLE, "").strip()
    limit_text = f"; {VARIABLE} is {value}" if value else ""
    with suppress(Exception):
        import torch

        free, total = (part // 2**20 for part in torch.cuda.mem_get_info())
        reserved = torch.cuda.memory_reserved() // 2**20
        return f": this process holds {reserved} MiB, {free} of {total} MiB are free{limit_text}"
    return limit_text
