"""Copies of batches to a GPU, beside what it computes: all that batches ask of CUDA.

Only copies from pinned (page-locked) memory are asynchronous, and only on a stream of their own do
they run beside a step (https://docs.pytorch.org/docs/stable/notes/cuda.html). Then two things can
go wrong: a buffer is overwritten before its copy has read it, or a batch is used before it has
arrived. An event, recorded behind the copy, tells both sides when it is done.
"""

from typing import Protocol

import torch
from torch import Tensor


class Copy(Protocol):
    """A copy that may not be done yet."""

    def wait(self) -> None:
        """Block this thread until the copy is done: its buffer may be overwritten."""

    def tensor(self) -> Tensor:
        """The copy, on the device: the device waits for it before it computes on."""


class Transfer(Protocol):
    """The way to a device."""

    @property
    def device(self) -> torch.device:
        """Where copies go."""

    def empty_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor in the host's memory, from which `copy` is asynchronous."""

    def copy(self, buffer: Tensor) -> Copy:
        """Begin to copy a tensor of `empty_buffer`, or a part of it, to the device."""


class CudaTransfer:
    """Copies on a stream of their own; any thread may call it.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def empty_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Transfer.empty_buffer`."""
        # A new thread's device is GPU 0, where pinning would make a context of half a gigabyte.
        with torch.cuda.device(self.device):
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def copy(self, buffer: Tensor) -> Copy:
        """See `Transfer.copy`."""
        with torch.cuda.stream(self._stream):
            tensor = buffer.to(self.device, non_blocking=True)
            # Blocking: a thread that waits for it sleeps and leaves its core to others.
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(self._stream)
        return _CudaCopy(tensor, event)


class _CudaCopy:
    def __init__(self, tensor: Tensor, event: torch.cuda.Event) -> None:
        self._tensor = tensor
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()

    def tensor(self) -> Tensor:
        stream = torch.cuda.current_stream(self._tensor.device)
        stream.wait_event(self._event)
        # The allocator knows only the stream of the copy. Without this it would give the memory to
        # the next copy while a step still reads it.
        self._tensor.record_stream(stream)
        return self._tensor
