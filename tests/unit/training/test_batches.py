"""Batches on their way to a device: complete, in order, and never too early or too late."""

import threading

import numpy as np
import pytest
import torch

from ml.training import batches as batches_module
from ml.training.batches import (
    DeviceBatches,
    HostBatches,
    StreamedBatches,
    fits,
    select_batches,
)
from ml.training.loop import _batch_indices
from tests.support.deferred_transfer import CarelessCopy, DeferredCopy, DeferredTransfer

COUNT = 100
WAYS = (DeviceBatches, StreamedBatches)


def _images():
    """Images that differ from each other."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, 4, 6), generator=generator, dtype=torch.uint8)
    return pixels, torch.arange(COUNT)


def _order(batches: int = 20, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    source = _batch_indices(COUNT, size, generator)
    return [next(source) for _ in range(batches)]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_device_gives_the_batches_of_the_host(way):
    pixels, labels = _images()
    order = [*_order(70), torch.tensor([5, 3])]  # the last one is smaller
    found = list(way(pixels, labels, DeferredTransfer()).gather(order))
    expected = list(HostBatches(pixels, labels).gather(order))
    assert len(found) == len(expected) == 71
    for (pixels_found, labels_found), (pixels_expected, labels_expected) in zip(
        found, expected, strict=True
    ):
        assert torch.equal(pixels_found, pixels_expected)
        assert torch.equal(labels_found, labels_expected)


@pytest.mark.parametrize("way", WAYS)
def test_each_image_comes_once_in_every_round(way):
    pixels, labels = _images()
    order = _order(batches=10, size=20)  # two rounds
    found = [labels for _, labels in way(pixels, labels, DeferredTransfer()).gather(order)]
    for round_ in (found[:5], found[5:]):
        assert torch.equal(torch.cat(round_).sort().values, torch.arange(COUNT))


def _arrived(make_copy) -> tuple[int, int]:
    """Of how many batches the right images arrive on a device that copies as late as it may."""
    pixels, labels = _images()
    transfer = DeferredTransfer(is_late=True, make_copy=make_copy)
    order = _order()
    found = list(StreamedBatches(pixels, labels, transfer).gather(order))
    transfer.finish()
    right = sum(torch.equal(found[i][0], pixels[rows]) for i, rows in enumerate(order))
    assert len(transfer.buffers) == 2 * 3  # all batches share three buffers of each kind
    return right, len(order)


def test_no_buffer_is_overwritten_before_its_copy():
    right, batches = _arrived(DeferredCopy)
    assert right == batches
    # The same without waiting for a buffer's copy: this test would notice.
    right, batches = _arrived(CarelessCopy)
    assert right <= 3


@pytest.mark.parametrize("way", WAYS)
def test_no_batch_is_used_before_it_has_arrived(way):
    pixels, labels = _images()
    transfer = DeferredTransfer()
    for _ in way(pixels, labels, transfer).gather(_order()):
        pass
    assert transfer.copies
    assert all(copy.is_awaited for copy in transfer.copies)


def test_indices_of_many_batches_go_to_the_device_in_one_copy():
    pixels, labels = _images()
    transfer = DeferredTransfer()
    assert len(list(DeviceBatches(pixels, labels, transfer).gather(_order(130)))) == 130
    assert len(transfer.copies) == 3


def test_only_a_few_batches_are_gathered_early():
    pixels, labels = _images()
    drawn = []

    def order():
        for rows in _order(50):
            drawn.append(rows)
            yield rows

    found = StreamedBatches(pixels, labels, DeferredTransfer()).gather(order())
    next(found)
    threading.Event().wait(0.2)
    assert len(drawn) <= 5
    found.close()


@pytest.mark.parametrize("way", WAYS)
def test_an_error_of_the_source_is_raised(way):
    pixels, labels = _images()

    def order():
        yield from _order(3)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        list(way(pixels, labels, DeferredTransfer()).gather(order()))


def test_an_error_of_the_device_is_raised():
    class BrokenTransfer(DeferredTransfer):
        def copy(self, buffer):
            raise RuntimeError("CUDA error: out of memory")

    pixels, labels = _images()
    with pytest.raises(RuntimeError, match="out of memory"):
        list(StreamedBatches(pixels, labels, BrokenTransfer()).gather(_order()))


def test_no_thread_outlives_the_training():
    pixels, labels = _images()
    found = StreamedBatches(pixels, labels, DeferredTransfer()).gather(_order())
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_images_stay_on_the_device_if_they_leave_half_of_its_memory_to_the_training():
    assert fits(needed=500, available=1000)
    assert not fits(needed=501, available=1000)
    assert not fits(needed=1, available=0)


@pytest.mark.parametrize(("free", "way"), [(10**6, DeviceBatches), (10**4, StreamedBatches)])
def test_the_memory_of_the_gpu_decides(free, way, monkeypatch):
    """torch's part is played, as there is no GPU."""
    pixels, labels = _images()
    assert 5 * 10**3 < pixels.nbytes < 10**4
    monkeypatch.delenv("NIGHTSCORE_GPU_MEMORY", raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(batches_module, "CudaTransfer", lambda device: DeferredTransfer())
    assert isinstance(select_batches(pixels, labels, torch.device("cuda")), way)


def test_on_a_cpu_a_memory_mapped_file_is_not_copied(tmp_path):
    path = tmp_path / "pixels.npy"
    np.save(path, np.zeros((20, 3, 8, 8), np.uint8))
    pixels = torch.from_numpy(np.load(path, mmap_mode="c"))
    images = select_batches(pixels, torch.zeros(20, dtype=torch.int64), torch.device("cpu"))
    assert isinstance(images, HostBatches)
    assert not images.is_early
    assert images._pixels.data_ptr() == pixels.data_ptr()
