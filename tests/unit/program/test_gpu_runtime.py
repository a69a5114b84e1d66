"""Running a program on a GPU, without one: the order of events, batches, memory, precision."""

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ml.errors import GpuMemoryError
from ml.models import build
from ml.program.batch_limit import BatchLimit, images_per_batch
from ml.program.gpu import STREAMS, StreamPool
from ml.program.gpu_runtime import GpuRuntime
from ml.program.info import ANOMALY, CLASSIFICATION, ProgramInfo
from ml.program.precision import TOLERANCE
from ml.program.program import Program
from ml.program.program_file import export
from ml.program.runtime import TorchRuntime
from tests.support.deferred_gpu import BYTES_PER_IMAGE, DeferredGpu

SIZE = (16, 24)
SHAPES = {ANOMALY: ("normal", "anomalous"), CLASSIFICATION: ("a", "b", "c")}


@pytest.fixture(
    scope="module", params=["residual_network", "anomaly_segmenter", "attention_autoencoder"]
)
def exported(request, tmp_path_factory):
    """The program of an architecture with fresh weights."""
    task = CLASSIFICATION if request.param == "residual_network" else ANOMALY
    torch.manual_seed(0)
    network = build(request.param, SIZE, SHAPES[task], {"width": 8}).eval()
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export(network, path, SIZE)
    return torch.export.load(path)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The program of a detector, whose scores differ from image to image."""
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export(_Detector(), path, SIZE)
    return torch.export.load(path)


class _Detector(torch.nn.Module):
    def forward(self, pixels):
        heat = pixels[:, 0, ::2, ::2].float() / 255
        return heat.mean((1, 2)), heat, heat.amax((1, 2))


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, *SIZE), dtype=np.uint8)


def _runtime(exported, gpu: DeferredGpu, precision: str = "float32") -> GpuRuntime:
    return GpuRuntime(exported, "m/1", SIZE, precision, StreamPool(gpu))


def _assert_equal(found, expected) -> None:
    for values, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, others, atol=1e-6)


def test_the_outputs_are_those_of_a_cpu(exported):
    runtime, pixels = _runtime(exported, DeferredGpu()), _pixels(40)
    _assert_equal(runtime(pixels), TorchRuntime(exported)(pixels))
    assert all(output.dtype == np.float32 for output in runtime(pixels))


def test_a_batch_from_page_locked_memory_is_not_copied_on_the_host(detector):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(20)
    batch = runtime.empty_batch(20, SIZE)
    batch[:] = pixels
    # As decoders write and convolutions read.
    assert batch.transpose(0, 2, 3, 1).flags.c_contiguous
    before = gpu.copied
    found = runtime(batch[:15])
    assert gpu.copied == before
    _assert_equal(found, TorchRuntime(detector)(pixels[:15]))
    runtime(pixels)
    assert gpu.copied == before + 1


def test_nothing_is_left_to_do_when_the_outputs_are_returned(detector):
    """So the caller may write the next images to the batch's memory."""
    gpu = DeferredGpu()
    runtime = _runtime(detector, gpu)
    pixels = _pixels(20)
    batch = runtime.empty_batch(20, SIZE)
    batch[:] = pixels
    found = runtime(batch)
    batch[:] = 0
    _assert_equal(found, TorchRuntime(detector)(pixels))
    assert gpu.events[-1].name == "synchronize"


def test_only_the_maps_of_images_above_the_threshold_leave_the_gpu(detector):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(40)
    scores, maps, _ = TorchRuntime(detector)(pixels)
    threshold = float(np.sort(scores)[-4])
    rows = np.flatnonzero(scores >= threshold)
    gpu.events.clear()
    found = runtime(pixels, threshold)
    assert gpu.named("download") == [40, 40, len(rows)]  # scores, novelties, four maps
    assert np.array_equal(found[1], maps[rows])
    gpu.events.clear()
    assert runtime(pixels, np.inf)[1].shape == (0, *maps.shape[1:])
    assert gpu.named("download") == [40, 40]
    assert np.array_equal(runtime(pixels)[1], maps)


def test_a_batch_is_halved_when_memory_runs_out_and_the_limit_is_remembered(detector, caplog):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(700)
    assert runtime.batch_size == 1024
    gpu.images = 100
    gpu.events.clear()
    with caplog.at_level(logging.WARNING):
        found = runtime(pixels)
    _assert_equal(found, TorchRuntime(detector)(pixels))
    assert gpu.named("launch")[:3] == [700, 350, 175]
    assert gpu.named("launch")[3:] == [87] * 8 + [4]
    assert (runtime.batch_size, gpu.released) == (87, 3)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args[0] for record in warnings] == [700, 350, 175]
    gpu.events.clear()
    _assert_equal(runtime(pixels), found)
    assert max(gpu.named("launch")) == 87


def test_maps_of_a_batch_that_was_divided_are_those_of_its_rows(detector):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(300)
    gpu.images = 80
    info = ProgramInfo("m", 1, ANOMALY, SHAPES[ANOMALY], SIZE, 0.5, "")
    outputs = Program(runtime, info, "cuda").predict(pixels, maps="flagged")
    scores, maps, _ = TorchRuntime(detector)(pixels)
    assert np.array_equal(outputs.map_rows, np.flatnonzero(scores >= 0.5))
    assert 0 < len(outputs.map_rows) < 300
    assert np.array_equal(outputs.anomaly_maps, maps[outputs.map_rows])


def test_the_memory_of_a_batch_that_failed_is_free_before_the_next_try(detector):
    gpu = DeferredGpu()
    runtime = _runtime(detector, gpu)
    gpu.images, uploaded, alive = 5, [], []

    def upload(stream, host, original=type(gpu.stream()).upload):
        tensor = original(stream, host)
        uploaded.append(weakref.ref(tensor))
        return tensor

    def look() -> None:
        gc.collect()
        alive.append(sum(one() is not None for one in uploaded))

    gpu.on_release = look
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(gpu.stream()), "upload", upload)
        runtime(_pixels(20))
    assert gpu.released == 2 and alive == [0, 0]


def test_too_little_memory_for_a_single_image_fails_by_name(detector):
    gpu = DeferredGpu()
    runtime = _runtime(detector, gpu)
    gpu.images = 0
    with pytest.raises(GpuMemoryError, match="too little GPU memory"):
        runtime(_pixels(20))
    assert runtime.batch_size == 1
    with pytest.raises(GpuMemoryError):
        _runtime(detector, DeferredGpu(images=0))
    # The streams are not lost.
    gpu.images = 10
    _assert_equal(runtime(_pixels(20)), TorchRuntime(detector)(_pixels(20)))


def test_threads_that_run_out_of_memory_at_once_halve_the_limit_once(detector):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(64)
    gpu.images = 32
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(runtime, [pixels] * 16))
    for outputs in found:
        _assert_equal(outputs, TorchRuntime(detector)(pixels))
    assert runtime.batch_size == 32


def test_a_thread_launches_while_another_waits_for_its_results(detector):
    """Else no copy would overlap with a kernel."""
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(8)
    # Passed only if all streams are waited for at the same time.
    together = threading.Barrier(STREAMS)
    gpu.on_synchronize = lambda: together.wait(timeout=60)
    gpu.events.clear()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(runtime, [pixels] * STREAMS))
    assert {event.stream for event in gpu.events} == set(range(1, STREAMS + 1))


def test_a_stream_is_used_by_one_thread_at_a_time(detector):
    gpu = DeferredGpu()
    runtime, pixels = _runtime(detector, gpu), _pixels(8)
    gpu.events.clear()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(runtime, [pixels] * 48))
    for number in range(1, STREAMS + 1):
        events = [event for event in gpu.events if event.stream == number]
        per_batch = ["upload", "launch", "download", "download", "synchronize", "download"]
        names = [event.name for event in events]
        assert names == [*per_batch, "synchronize"] * (len(names) // 7)
        for start in range(0, len(events), 7):
            assert len({event.thread for event in events[start : start + 7]}) == 1


@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_allowed_only_where_it_is_asked_for(detector, precision, allowed):
    before, seen = torch.backends.cudnn.allow_tf32, []
    gpu = DeferredGpu()
    gpu.on_launch = lambda: seen.append(
        (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    )
    _runtime(detector, gpu, precision)(_pixels(4))
    assert set(seen) == {(allowed, allowed)}
    assert torch.backends.cudnn.allow_tf32 == before


def test_bfloat16_stays_within_its_tolerance(exported):
    pixels = _pixels(40)
    found = _runtime(exported, DeferredGpu(), "bfloat16")(pixels)
    expected = TorchRuntime(exported)(pixels)
    differences = [np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]
    assert 0 < max(differences) <= TOLERANCE["bfloat16"]
    assert all(output.dtype == np.float32 for output in found)


class _Rounded:
    """A runtime with errors of a size, as of a lower precision."""

    def __init__(self, exported, precision: str) -> None:
        self.exact = TorchRuntime(exported)
        self.precision = precision

    def __call__(self, pixels, map_threshold=None):
        scores, maps, novelties = self.exact(pixels)
        error = 0.9 * TOLERANCE[self.precision] * np.where(np.arange(len(scores)) % 2, 1, -1)
        scores = (scores + error).astype(np.float32)
        rows = slice(None) if map_threshold is None else np.flatnonzero(scores >= map_threshold)
        return scores, maps[rows] * 0.9, novelties


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_what_an_error_could_decide_is_computed_again_with_its_map(detector, precision):
    pixels = _pixels(200)
    exact = TorchRuntime(detector)
    scores, maps, _ = exact(pixels)
    info = ProgramInfo("m", 1, ANOMALY, SHAPES[ANOMALY], SIZE, float(np.median(scores)), "")
    program = Program(_Rounded(detector, precision), info, "cuda", exact)
    outputs = program.predict(pixels, maps="flagged")
    assert np.array_equal(outputs.scores >= info.threshold, scores >= info.threshold)
    with_map = dict(zip(outputs.map_rows.tolist(), outputs.anomaly_maps, strict=True))
    near = np.abs(outputs.scores - info.threshold) < 0.05 * TOLERANCE[precision]
    assert near.any()
    for row in np.flatnonzero(scores >= info.threshold).tolist():
        if near[row]:
            assert np.array_equal(with_map[row], maps[row])
        assert row in with_map
    assert len(program.predict(pixels, maps="none").anomaly_maps) == 0
    assert len(program.predict(pixels).anomaly_maps) == 200


@pytest.mark.parametrize(
    ("size", "bytes_per_image", "available", "images"),
    [
        ((32, 32), 1, 10**12, 1024),  # more would make a GPU no faster
        ((128, 224), 1, 10**12, 128),
        ((512, 512), 1, 10**12, 16),
        ((4096, 4096), 1, 10**12, 1),
        ((32, 32), 2**20, 2**30, 512),  # half of the memory
        ((512, 512), 2**27, 2**30, 4),
        ((512, 512), 2**30, 2**20, 1),  # it is tried all the same
        ((32, 32), 0, 2**30, 1024),
    ],
)
def test_a_batch_has_a_budget_of_pixels_and_of_bytes(size, bytes_per_image, available, images):
    assert images_per_batch(size, bytes_per_image, available) == images


def test_the_budget_comes_from_what_an_image_takes_and_what_the_gpu_has(detector):
    gpu = DeferredGpu(available=2 * STREAMS * 100 * BYTES_PER_IMAGE)
    assert _runtime(detector, gpu).batch_size == 64
    # It is measured with what fits.
    assert _runtime(detector, DeferredGpu(images=3, available=10**12)).batch_size == 1024


def test_a_limit_never_rises():
    limit = BatchLimit("m/1", 64)
    assert limit.halve(64) and limit.images == 32
    assert limit.halve(64) and limit.images == 32  # another thread's batch of before
    assert limit.halve(2) and limit.images == 1
    assert not limit.halve(1) and limit.images == 1
