"""A GPU that is slow to begin: what is enqueued is done only when somebody waits for it.

It stands in for the hardware at `ml.program.gpu`. Nothing happens before `synchronize`: what is
read too early is not a number, and what is overwritten too early arrives wrong. Its memory is a
number of images: a larger batch fails as torch's allocator does.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BYTES_PER_IMAGE = 1000
_NOT_YET = 0xEE


class Event(NamedTuple):
    """Something that was asked of a stream: by which thread, what, and of how many images."""

    thread: int
    stream: int
    name: str
    images: int


class DeferredGpu:
    """See `ml.program.gpu.Gpu`.

    `events` are what its streams were asked for, in order; `on_synchronize` is called each time a
    thread begins to wait.
    """

    def __init__(self, images: int = 10**6, available: int = 10**12) -> None:
        self.images = images
        self.available = available
        self.events: list[Event] = []
        self.copied = 0
        self.released = 0
        self.on_synchronize: Callable[[], None] = lambda: None
        self.on_launch: Callable[[], None] = lambda: None
        self.on_release: Callable[[], None] = lambda: None
        self._locked: set[int] = set()
        self._streams = 0

    def stream(self) -> "DeferredStream":
        self._streams += 1
        return DeferredStream(self, self._streams)

    def empty(self, count: int, size: tuple[int, int]) -> Tensor:
        batch = torch.empty((count, *size, 3), dtype=torch.uint8)
        self._locked.add(batch.data_ptr())
        return batch.permute(0, 3, 1, 2)

    def pin(self, host: Tensor) -> Tensor:
        if host.data_ptr() in self._locked:
            return host
        self.copied += 1
        return host.clone()

    def available_bytes(self) -> int:
        return self.available

    def peak_bytes(self, run: Callable[[], object]) -> int:
        before = len(self.events)
        run()
        launched = [event.images for event in self.events[before:] if event.name == "launch"]
        return BYTES_PER_IMAGE * max(launched)

    def release(self) -> None:
        self.released += 1
        self.on_release()

    def named(self, name: str) -> list[int]:
        """The numbers of images of all events of a name."""
        return [event.images for event in self.events if event.name == name]


class DeferredStream:
    """See `ml.program.gpu.Stream`."""

    def __init__(self, gpu: DeferredGpu, number: int) -> None:
        self._gpu = gpu
        self._number = number
        self._enqueued: list[Callable[[], Any]] = []

    def _note(self, name: str, images: int) -> None:
        self._gpu.events.append(Event(threading.get_ident(), self._number, name, images))

    def upload(self, host: Tensor) -> Tensor:
        self._note("upload", len(host))
        there = torch.full_like(host, _NOT_YET if host.dtype == torch.uint8 else 0)
        self._enqueued.append(lambda: there.copy_(host))
        return there

    def launch(self, function: Callable[..., Any], *arguments: Any) -> Any:
        images = max((len(one) for one in arguments if isinstance(one, Tensor)), default=0)
        self._note("launch", images)
        self._gpu.on_launch()
        if images > self._gpu.images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        with torch.inference_mode():
            # For their shapes; the values come when the operation's turn has come.
            results = function(*arguments)
            for one in _tensors(results):
                _spoil(one)

        def run() -> None:
            with torch.inference_mode():
                for result, value in zip(
                    _tensors(results), _tensors(function(*arguments)), strict=True
                ):
                    result.copy_(value)

        self._enqueued.append(run)
        return results

    def download(self, tensor: Tensor) -> Tensor:
        self._note("download", len(tensor))
        here = _spoil(torch.empty_like(tensor))
        self._enqueued.append(lambda: here.copy_(tensor))
        return here

    def synchronize(self) -> None:
        self._note("synchronize", 0)
        self._gpu.on_synchronize()
        enqueued, self._enqueued = self._enqueued, []
        for operation in enqueued:
            operation()


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _spoil(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
