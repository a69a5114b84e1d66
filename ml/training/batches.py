"""The batches of a training or a validation, on the device that computes.

- On a CPU they are gathered where the images are.
- On a GPU whose memory has enough space, all images are uploaded once and gathered there.
- Otherwise a background thread gathers the next batches and copies them while a step computes.

Whoever uses a batch on a GPU never waits for a copy, unless the images come too slowly.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ml.parallel import batched, prefetch
from ml.program import gpu_memory
from ml.training.transfer import Copy, CudaTransfer, Transfer

# uint8 (B, 3, H, W) and int64 (B,).
Batch = tuple[Tensor, Tensor]

# The share of the available GPU memory that images may take; the rest is for the training itself.
MAX_SHARE = 0.5
_INDEX_BATCHES = 64  # batches whose indices go to the device in one copy
_BUFFERS = 3  # one is filled while another is copied; the third evens out their speeds
_PREFETCHED_BATCHES = 2


class Batches(Protocol):
    """Labelled images, which come in batches."""

    @property
    def is_early(self) -> bool:
        """Whether `gather` reads its indices before their batch is asked for."""

    def gather(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """Yield a batch for each tensor of indices, on the device.

        Args:
            indices: each int64 (B,), on the CPU, without a negative number. With `is_early` they
                are read early, maybe by another thread; an error there is raised here.
        """


def select_batches(pixels: Tensor, labels: Tensor, device: torch.device) -> Batches:
    """The fastest way to a device for these images.

    Args:
        pixels: uint8 (N, 3, H, W); may be a view of a memory-mapped file, as it is only read.
        labels: int64 (N,).
        device: the CPU or the current GPU.

    Raises:
        ConfigurationError: `NIGHTSCORE_GPU_MEMORY` is not an amount of memory.
    """
    if device.type == "cpu":
        return HostBatches(pixels, labels)
    transfer = CudaTransfer(device)
    if fits(pixels.nbytes + labels.nbytes, gpu_memory.available()):
        return DeviceBatches(pixels, labels, transfer)
    return StreamedBatches(pixels, labels, transfer)


def fits(needed: int, available: int) -> bool:
    """Whether images of `needed` bytes may stay on a GPU that has `available` bytes for us."""
    return needed <= MAX_SHARE * available


class HostBatches:
    """Images that batches are gathered from where they are, without another copy.

    Args:
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,).
    """

    is_early = False

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self._pixels = pixels
        self._labels = labels

    def gather(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """See `Batches.gather`."""
        for rows in indices:
            yield self._pixels[rows], self._labels[rows]


class DeviceBatches:
    """Images that are uploaded once; then only indices are copied, those of many batches at once.

    Args:
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,).
        transfer: the way to the device.
    """

    is_early = True

    def __init__(self, pixels: Tensor, labels: Tensor, transfer: Transfer) -> None:
        self._pixels = pixels.to(transfer.device)
        self._labels = labels.to(transfer.device)
        self._transfer = transfer

    def gather(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """See `Batches.gather`."""
        for some in batched(indices, _INDEX_BATCHES):
            sizes = [len(rows) for rows in some]
            buffer = self._transfer.empty_buffer((sum(sizes),), torch.int64)
            torch.cat(some, out=buffer)
            for rows in torch.split(self._transfer.copy(buffer).tensor(), sizes):
                yield self._pixels[rows], self._labels[rows]


class StreamedBatches:
    """Images that stay in the host's memory, or in a file, and are copied batch by batch.

    Args:
        pixels: uint8 (N, 3, H, W).
        labels: int64 (N,).
        transfer: the way to the device.
    """

    is_early = True

    def __init__(self, pixels: Tensor, labels: Tensor, transfer: Transfer) -> None:
        self._pixels = pixels
        self._labels = labels
        self._transfer = transfer

    def gather(self, indices: Iterable[Tensor]) -> Generator[Batch, None, None]:
        """See `Batches.gather`."""
        copies = prefetch(self._copies(indices), _PREFETCHED_BATCHES)
        try:
            for pixels, labels in copies:
                yield pixels.tensor(), labels.tensor()
        finally:
            copies.close()

    def _copies(self, indices: Iterable[Tensor]) -> Iterator[tuple[Copy, Copy]]:
        """Begin the copies of one batch after the other, on the thread that iterates."""
        buffers = [
            (_Buffer(self._pixels, self._transfer), _Buffer(self._labels, self._transfer))
            for _ in range(_BUFFERS)
        ]
        for number, rows in enumerate(indices):
            pixels, labels = buffers[number % _BUFFERS]
            yield pixels.copy(rows), labels.copy(rows)


class _Buffer:
    """Memory for one batch on its way, used again for later ones.

    Args:
        source: what is copied, (N, ...), in the host's memory.
        transfer: the way to the device.
    """

    def __init__(self, source: Tensor, transfer: Transfer) -> None:
        self._source = source
        self._transfer = transfer
        self._memory: Tensor | None = None
        self._copy: Copy | None = None

    def copy(self, rows: Tensor) -> Copy:
        """Gather rows of the source, as soon as the last copy has left the memory; copy them."""
        if self._copy is not None:
            self._copy.wait()
        if self._memory is None or len(self._memory) < len(rows):
            shape = (len(rows), *self._source.shape[1:])
            self._memory = self._transfer.empty_buffer(shape, self._source.dtype)
        gathered = self._memory[: len(rows)]
        torch.index_select(self._source, 0, rows, out=gathered)
        self._copy = self._transfer.copy(gathered)
        return self._copy
