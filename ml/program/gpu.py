"""The GPU at the edge: streams, page-locked memory and the memory that is left.

All that scoring asks of CUDA is here, so that everything else is tried without a GPU.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import LifoQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ml.program import gpu_memory

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")

# Batches that are on the GPU at once: one is computed while the next one is copied there and the
# one before is copied back. Each stream keeps the memory of its largest batch.
STREAMS = 3


class Stream(Protocol):
    """A queue of work for the GPU: it is done in order, and beside that of other streams."""

    def upload(self, host: "Tensor") -> "Tensor":
        """Enqueue a copy to the GPU; `host` must stay as it is until `synchronize` returns."""
        ...

    def launch(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function whose operations are enqueued here, without gradients."""
        ...

    def download(self, tensor: "Tensor") -> "Tensor":
        """Enqueue a copy to the host; its content is there once `synchronize` has returned."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was enqueued is done; other threads run meanwhile."""
        ...


class Gpu(Protocol):
    """A GPU with its memory."""

    def stream(self) -> Stream:
        """Return a new stream."""
        ...

    def empty(self, count: int, size: tuple[int, int]) -> "Tensor":
        """Return an uninitialised batch on the host, page-locked, in channels-last order.

        Args:
            count: Number of images.
            size: Height and width in pixels.

        Returns:
            uint8 (count, 3, height, width).
        """
        ...

    def pin(self, host: "Tensor") -> "Tensor":
        """Return `host`, or a copy of it in the same layout if it is not page-locked."""
        ...

    def available_bytes(self) -> int:
        """Return how many bytes this process may still take."""
        ...

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Return the bytes that `run` takes at most, beside what is taken before."""
        ...

    def release(self) -> None:
        """Give back the memory that torch's allocator keeps for later."""
        ...


class StreamPool:
    """A few streams of a GPU, which the threads of a process borrow.

    Args:
        gpu: The GPU.
        count: Number of streams.

    Attributes:
        launching: Held by the thread that enqueues operations. Two threads that do so would wait
            for Python's lock at every operation; and TF32 is a setting of the process.
    """

    def __init__(self, gpu: Gpu, count: int = STREAMS) -> None:
        self.gpu = gpu
        self.count = count
        self.launching = threading.Lock()
        # The last one that was returned comes first, as it has memory already.
        self._idle: LifoQueue[Stream] = LifoQueue()
        for _ in range(count):
            self._idle.put(gpu.stream())

    @contextmanager
    def borrow(self) -> Iterator[Stream]:
        """Wait for a stream, and return it in the end."""
        stream = self._idle.get()
        try:
            yield stream
        finally:
            self._idle.put(stream)


@cache
def cuda_streams() -> StreamPool:
    """Return the streams of this process's GPU.

    Raises:
        ConfigurationError: `NIGHTSCORE_GPU_MEMORY` cannot be read.
    """
    return StreamPool(_CudaGpu())


class _CudaStream:
    """See `Stream`."""

    def __init__(self) -> None:
        import torch

        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # A thread that waits for it sleeps; otherwise it would spin on a core that decodes.
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def upload(self, host: "Tensor") -> "Tensor":
        return self.launch(lambda: host.to("cuda", non_blocking=True))

    def launch(self, function: Callable[..., Result], *arguments: Any) -> Result:
        import torch

        with torch.cuda.stream(self._stream), torch.inference_mode():
            return function(*arguments)

    def download(self, tensor: "Tensor") -> "Tensor":
        import torch

        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self.launch(lambda: host.copy_(tensor, non_blocking=True))
        return host

    def synchronize(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()


class _CudaGpu:
    """See `Gpu`."""

    def __init__(self) -> None:
        gpu_memory.apply_limit()

    def stream(self) -> Stream:
        return _CudaStream()

    def empty(self, count: int, size: tuple[int, int]) -> "Tensor":
        import torch

        # torch keeps page-locked memory for the next batch: to allocate it anew takes long.
        batch = torch.empty((count, *size, 3), dtype=torch.uint8, pin_memory=True)
        return batch.permute(0, 3, 1, 2)

    def pin(self, host: "Tensor") -> "Tensor":
        return host if host.is_pinned() else host.pin_memory()

    def available_bytes(self) -> int:
        return gpu_memory.available()

    def peak_bytes(self, run: Callable[[], object]) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def release(self) -> None:
        import torch

        torch.cuda.empty_cache()
