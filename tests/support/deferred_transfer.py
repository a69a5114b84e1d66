"""A device at the edge of `ml.training.batches` whose copies are as late as a GPU's can be."""

import threading

import torch
from torch import Tensor

NOT_ARRIVED = 0xAA  # what memory on the device holds before a copy


class DeferredCopy:
    """Reads its buffer only when it has to.

    Args:
        buffer: what is copied.
        is_late: whether the device reads the buffer only in `finish`, unless the host waits;
            otherwise it does when it is told to compute with the copy.
    """

    def __init__(self, buffer: Tensor, is_late: bool) -> None:
        self._buffer = buffer
        self._is_late = is_late
        self._lock = threading.Lock()
        self._is_done = False
        self.is_awaited = False  # whether the device waits for it before it computes
        self.target = torch.full_like(buffer, NOT_ARRIVED)

    def wait(self) -> None:
        self.finish()

    def tensor(self) -> Tensor:
        self.is_awaited = True
        if not self._is_late:
            self.finish()
        return self.target

    def finish(self) -> None:
        with self._lock:
            if not self._is_done:
                self.target.copy_(self._buffer)
                self._is_done = True


class CarelessCopy(DeferredCopy):
    """As if nobody waited for a copy before its buffer is overwritten."""

    def wait(self) -> None:
        pass


class DeferredTransfer:
    """The CPU in the place of a GPU.

    Whoever overwrites a buffer without waiting for its copy changes what arrives, and whoever uses a
    copy without asking for its tensor uses `NOT_ARRIVED`.

    Args:
        is_late: see `DeferredCopy`.
        make_copy: what a copy is.
    """

    device = torch.device("cpu")

    def __init__(self, *, is_late: bool = False, make_copy: type[DeferredCopy] = DeferredCopy):
        self._is_late = is_late
        self._make_copy = make_copy
        self.copies: list[DeferredCopy] = []
        self.buffers: list[Tensor] = []

    def empty_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.buffers.append(torch.zeros(shape, dtype=dtype))
        return self.buffers[-1]

    def copy(self, buffer: Tensor) -> DeferredCopy:
        self.copies.append(self._make_copy(buffer, self._is_late))
        return self.copies[-1]

    def finish(self) -> None:
        """Let the device do what is left."""
        for copy in self.copies:
            copy.finish()
